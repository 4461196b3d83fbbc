"""What the numbers say, in words: no sentence here goes further than the paired intervals do."""

from __future__ import annotations

from tdistill.report.measures import (
    MOST_NAMED,
    Measure,
    count,
    decoding_phrase,
    in_order,
    in_sentence,
    interval,
    listed,
    measure,
    model_name,
    number,
    verdict,
)
from tdistill.report.result import SAMPLED, START, TEACHER, TUNED, Estimate, Result
from tdistill.report.tables import divergence_metric, quality_metric, table_columns

SHARED_DECODINGS = ["greedy", "sample", "nucleus"]


def against(result: Result, label: str, metric: str, decoding: str | None) -> Estimate | None:
    """The distilled student less another model, on the same prompts and training seeds."""
    turned = result.difference(label, result.distilled, metric, decoding)
    return None if turned is None else -turned


def summary(result: Result) -> list[str]:
    """The sentences under the title; those that lack their numbers are left out."""
    sentences = [_counted(result), _sizes(result), _from_start(result)]
    sentences += _against_the_others(result) + _against_the_baseline(result)
    sentences += [_against_teacher(result), *_tuned(result)]
    return [s for s in sentences if s]


def caveat(result: Result) -> str:
    """What the intervals cover and what they do not."""
    prompts, trained = result.counts["test_prompts"], result.counts["training_seeds"]
    generated = max((score.seeds for score in result.scores), default=1)
    source = f"{_many(prompts, 'held-out prompt')} and {_many(generated, 'generation seed')}"
    if trained == 1:
        seeds = (
            f"Intervals hold 95% and describe the evaluation ({source}). Each model was trained "
            "once, so they do not cover the variation between training runs."
        )
    else:
        seeds = (
            f"Intervals hold 95% and draw prompts and training seeds ({source}, "
            f"{trained} training seeds). Few seeds say little about other seeds, so an interval "
            "is rather too narrow where seeds matter more than prompts."
        )
    return (
        f"{seeds} Models are ranked by their difference on the same prompts and seeds: only where "
        "its interval is without 0. One interval in twenty misses by chance: of many marks, some "
        f"will be wrong.{_absent(result)}"
    )


def _absent(result: Result) -> str:
    measured = {
        name
        for row in (*result.scores, *result.imitation)
        for name, found in row.metrics.items()
        if found is not None
    }
    names = [in_sentence(measure(x).title) for x in result.absent if x not in measured]
    if not names:
        return ""
    return f" Not measured, since the teacher's weights were elsewhere: {', '.join(names)}."


def _many(size: int, what: str) -> str:
    return f"{size} {what}{'' if size == 1 else 's'}"


def _counted(result: Result) -> str:
    objectives, seeds = result.counts["objectives"], result.counts["training_seeds"]
    if objectives == 1 and seeds == 1:
        return ""
    return (
        f"{_many(objectives, 'objective')}, {_many(seeds, 'training seed')}: the same teacher "
        "responses, order of batches and start for every objective of a seed."
    )


def _sizes(result: Result) -> str:
    teacher, student = (result.parameters[x] for x in (TEACHER, result.distilled))
    return (
        f"The teacher has {count(teacher)} parameters, the student {count(student)} "
        f"({student / teacher:.0%} as many)."
    )


def _from_start(result: Result) -> str:
    metric = divergence_metric(result)
    before = result.estimate(START, metric, None)
    after = result.estimate(result.distilled, metric, None)
    difference = against(result, START, metric, None)
    if before is None or after is None or difference is None:
        return ""
    tail = {
        "better": "it fell",
        "worse": "it rose",
        "even": "not told apart",
        "": "no interval to compare by",
    }[verdict(difference, measure(metric))]
    return (
        f"{measure(metric).title} to the teacher is {number(before.mean, 2)} "
        f"{interval(before, 2)} nats a step at the start and {number(after.mean, 2)} "
        f"{interval(after, 2)} after {model_name(result.distilled)}; {tail}{_by(difference, 2)}."
    )


def _by(difference: Estimate, digits: int) -> str:
    if difference.low is None:
        return ""
    return f", difference {number(difference.mean, digits)} {interval(difference, digits)}"


def _against_the_others(result: Result) -> list[str]:
    """Which models are above, below, or not told apart: forward KL, then quality.

    Decodings with the same outcome share one sentence.
    """
    outcomes: dict[tuple[str, str], list[str]] = {}
    for metric, decoding in [
        (divergence_metric(result), None),
        *((quality_metric(result), d) for d in in_order(result.decodings, SHARED_DECODINGS)),
    ]:
        outcome = _outcome(result, metric, decoding)
        if outcome:
            places = outcomes.setdefault((metric, outcome), [])
            places += [decoding_phrase(decoding)] if decoding else []
    return [
        f"{measure(metric).title} of {model_name(result.distilled)}{_places(places)} is {outcome}."
        for (metric, outcome), places in outcomes.items()
    ]


def _places(phrases: list[str]) -> str:
    if len(phrases) == len(SHARED_DECODINGS):
        return " in all three decodings"
    return f", {listed(phrases)}," if phrases else ""


def _outcome(result: Result, metric: str, decoding: str | None) -> str:
    """What one measure says, in words; empty where it compares nothing."""
    # The start is dealt with by its own sentence where the divergence is concerned.
    told = {START} if metric == divergence_metric(result) else set()
    skipped = {TEACHER, result.distilled} | told
    groups: dict[str, list[str]] = {}
    for label in result.models:
        if label not in skipped:
            found = verdict(against(result, label, metric, decoding), measure(metric))
            groups.setdefault(found, []).append(model_name(label))
    up = measure(metric).better > 0
    words = {
        "better": f"{'higher' if up else 'lower'} than that of {{}}",
        "worse": f"{'lower' if up else 'higher'} than that of {{}}",
        "even": "not told apart from that of {}",
    }
    return "; ".join(words[k].format(listed(groups[k])) for k in words if k in groups)


def _against_the_baseline(result: Result) -> list[str]:
    """How many objectives are told apart from the baseline, for the first measures of the table."""
    others = [label for label in result.objectives if label != result.baseline]
    if len(others) <= MOST_NAMED:
        return []
    sentences = []
    for column in table_columns(result)[:4]:
        differences = [
            result.difference(x, result.baseline, column.metric, column.decoding) for x in others
        ]
        found = [verdict(d, column.measure) for d in differences if d is not None]
        better, worse = found.count("better"), found.count("worse")
        sentences.append(
            f"{column.title}: {better} better than {model_name(result.baseline)}, {worse} worse, "
            f"{len(found) - better - worse} not told apart."
        )
    return sentences


def _against_teacher(result: Result) -> str:
    """The teacher's own quality: how much room there was."""
    metric = quality_metric(result)
    what = measure(metric)
    for decoding in SHARED_DECODINGS:
        theirs = result.estimate(TEACHER, metric, decoding)
        ours = result.estimate(result.distilled, metric, decoding)
        if theirs is not None and ours is not None:
            return (
                f"The teacher itself reaches {what.title} {_with_interval(theirs, what)} "
                f"{decoding_phrase(decoding)}, against {_with_interval(ours, what)}."
            )
    return ""


def _with_interval(estimate: Estimate, what: Measure) -> str:
    return f"{number(estimate.mean, what.digits)} {interval(estimate, what.digits)}"


def _tuned(result: Result) -> list[str]:
    """Models whose temperature was tuned, against the student (tuned too, else at T = 1)."""
    decoding = TUNED if result.distilled in result.temperatures else SAMPLED
    metric = quality_metric(result)
    what = measure(metric)
    ours = result.estimate(result.distilled, metric, decoding)
    sentences = []
    for label, temperatures in result.temperatures.items():
        theirs = result.estimate(label, metric, TUNED)
        if label in (TEACHER, result.distilled) or theirs is None or ours is None:
            continue
        at = ", ".join(f"{t:g}" for t in sorted(set(temperatures)))
        how = "tuned too" if decoding == TUNED else decoding_phrase(SAMPLED)
        difference = against(result, label, metric, TUNED)
        found = {
            "better": "higher",
            "worse": "lower",
            "even": "not told apart",
            "": "no interval to compare by",
        }[verdict(difference, what)]
        sentences.append(
            f"{model_name(label)} with its temperature tuned (T = {at}) reaches "
            f"{what.title} {_with_interval(theirs, what)}; {model_name(result.distilled)} "
            f"({how}) {_with_interval(ours, what)}: {found}"
            f"{_by(difference, what.digits) if difference else ''}."
        )
    return sentences
