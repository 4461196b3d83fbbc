"""What the numbers say, in words: no sentence here goes further than the intervals do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tdistill.report.measures import (
    count,
    decoding_phrase,
    in_order,
    interval,
    measure,
    model_name,
    number,
)
from tdistill.report.records import START, TEACHER, Estimate, Record

Verdict = Literal["better", "worse", "overlap", "unknown"]

SHARED_DECODINGS = ["greedy", "sample", "nucleus"]


@dataclass(frozen=True)
class Comparison:
    """The distilled student against one baseline on one measure."""

    verdict: Verdict
    difference: float | None
    ours: Estimate | None
    theirs: Estimate | None


@dataclass(frozen=True)
class Contest:
    """One column of the comparison: a metric, in a decoding or (None) on teacher responses."""

    metric: str
    decoding: str | None


def verdict(ours: Estimate | None, theirs: Estimate | None, better: int) -> Verdict:
    """Rank two estimates by their intervals.

    Args:
        ours: the first estimate.
        theirs: the second one, in the same unit.
        better: +1 where higher is better, -1 where lower is.

    Returns:
        ``better`` or ``worse`` (of ``ours``) only where the intervals are disjoint; ``overlap``
        where they are not; ``unknown`` where one is missing or has no interval.

    Example:
        >>> verdict(Estimate(1.0, 0.9, 1.1), Estimate(2.0, 1.8, 2.2), -1)
        'better'
    """
    if ours is None or theirs is None or not (ours.comparable and theirs.comparable):
        return "unknown"
    assert ours.low is not None and ours.high is not None
    assert theirs.low is not None and theirs.high is not None
    if ours.low > theirs.high:
        return "better" if better > 0 else "worse"
    if ours.high < theirs.low:
        return "worse" if better > 0 else "better"
    return "overlap"


def contests(record: Record) -> list[Contest]:
    """The measures on which the distilled student and some baseline both have a number."""
    shared = in_order([s.decoding for s in record.scores], SHARED_DECODINGS)
    wanted = [Contest("forward_kl", None), Contest("leak", None)]
    wanted += [
        Contest(name, decoding)
        for name in ("rouge_l", "teacher_nll")
        for decoding in shared
        if decoding != "tuned"
    ]
    return [
        c
        for c in wanted
        if record.estimate(record.distilled, c.metric, c.decoding) is not None
        and any(record.estimate(m, c.metric, c.decoding) is not None for m in record.baselines)
    ]


def comparison(record: Record, baseline: str, contest: Contest) -> Comparison:
    """Compare the distilled student with one baseline on one measure."""
    ours = record.estimate(record.distilled, contest.metric, contest.decoding)
    theirs = record.estimate(baseline, contest.metric, contest.decoding)
    result = verdict(ours, theirs, measure(contest.metric).better)
    difference = ours.mean - theirs.mean if ours and theirs else None
    return Comparison(result, difference, ours, theirs)


def headline(record: Record) -> str:
    """The report's title: what became of the forward KL, as far as the intervals allow."""
    before = record.estimate(START, "forward_kl", None)
    after = record.estimate(record.distilled, "forward_kl", None)
    teacher, student = record.parameter_count(TEACHER), record.parameters.get("student")
    sizes = teacher is not None and student is not None
    if before is None or after is None or record.distilled is None:
        if sizes:
            return f"A {count(student)}-parameter student of a {count(teacher)}-parameter teacher"
        return "Distillation report"
    name, a, b = model_name(record.distilled), number(before.mean, 2), number(after.mean, 2)
    result = verdict(after, before, -1)
    if result in ("better", "worse"):
        moved = "lowers" if result == "better" else "raises"
        whose = f"a {count(student)} student" if sizes else "the student"
        whom = f"its {count(teacher)} teacher" if sizes else "its teacher"
        return f"{name} {moved} the forward KL of {whose} to {whom} from {a} to {b} nats a step"
    reason = "the intervals overlap" if result == "overlap" else "without intervals, not a ranking"
    return f"Forward KL to the teacher: {a} nats a step before {name}, {b} after; {reason}"


def summary(record: Record) -> list[str]:
    """The sentences under the title; those that lack their numbers are left out."""
    sentences = [_sizes(record), _from_start(record)]
    sentences += _against_baselines(record)
    sentences += [_against_teacher(record), *_tuned(record)]
    return [s for s in sentences if s]


def caveat(record: Record) -> str:
    """What the intervals cover and what they do not."""
    seeds = sorted({s.seeds for s in record.scores if s.seeds is not None})
    prompts = sorted({s.prompts for s in record.scores if s.prompts is not None})
    parts = []
    if prompts:
        parts.append(f"{_range(prompts)} held-out prompt{'s' if prompts[-1] > 1 else ''}")
    if seeds:
        parts.append(f"{_range(seeds)} generation seed{'s' if seeds[-1] > 1 else ''}")
    source = f" ({' and '.join(parts)})" if parts else ""
    return (
        f"Intervals describe the evaluation{source}. Each model was trained once, so they do not "
        "cover the variation between training runs. Where two intervals overlap, this page does "
        "not rank the models."
    )


def _range(values: list[int]) -> str:
    low, high = values[0], values[-1]
    return f"{low}" if low == high else f"{low} to {high}"


def _sizes(record: Record) -> str:
    teacher, student = record.parameter_count(TEACHER), record.parameters.get("student")
    if not teacher or student is None:
        return ""
    share = f"{student / teacher:.0%}"
    return (
        f"The teacher has {count(teacher)} parameters, the student {count(student)} "
        f"({share} as many)."
    )


def _from_start(record: Record) -> str:
    before = record.estimate(START, "forward_kl", None)
    after = record.estimate(record.distilled, "forward_kl", None)
    if before is None or after is None or record.distilled is None:
        return ""
    tail = {
        "better": "the intervals do not overlap",
        "worse": "it rose, and the intervals do not overlap",
        "overlap": "the intervals overlap",
        "unknown": "one of them has no interval",
    }[verdict(after, before, -1)]
    return (
        f"Forward KL to the teacher is {number(before.mean, 2)} {interval(before, 2)} nats a step "
        f"at the start and {number(after.mean, 2)} {interval(after, 2)} after "
        f"{model_name(record.distilled)}; {tail}."
    )


def _against_baselines(record: Record) -> list[str]:
    """Which baselines are above, below, or not separated: forward KL, then Rouge-L.

    Decodings with the same outcome share one sentence.
    """
    if record.distilled is None:
        return []
    name = model_name(record.distilled)
    outcomes: dict[tuple[str, str], list[str]] = {}
    for contest in contests(record):
        outcome = _outcome(record, contest)
        if outcome and contest.metric in ("forward_kl", "rouge_l"):
            places = outcomes.setdefault((contest.metric, outcome), [])
            places += [decoding_phrase(contest.decoding)] if contest.decoding else []
    return [
        f"{measure(metric).title} of {name}{_places(places)} is {outcome}."
        for (metric, outcome), places in outcomes.items()
    ]


def _places(phrases: list[str]) -> str:
    if len(phrases) == len(SHARED_DECODINGS):
        return " in all three decodings"
    return f", {_listed(phrases)}," if phrases else ""


def _outcome(record: Record, contest: Contest) -> str:
    """What one measure says, in words; empty where it compares nothing."""
    # The start is dealt with by its own sentence where forward KL is concerned.
    skip = START if contest.metric == "forward_kl" else None
    groups: dict[str, list[str]] = {}
    for label in record.baselines:
        if label != skip:
            result = comparison(record, label, contest).verdict
            groups.setdefault(result, []).append(model_name(label))
    up = measure(contest.metric).better > 0
    words = {
        "better": f"{'higher' if up else 'lower'} than that of {{}}",
        "worse": f"{'lower' if up else 'higher'} than that of {{}}",
        "overlap": "not separated from that of {} (intervals overlap)",
    }
    return "; ".join(words[k].format(_listed(groups[k])) for k in words if k in groups)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _against_teacher(record: Record) -> str:
    """The teacher's own Rouge-L: how much room there was."""
    for decoding in SHARED_DECODINGS:
        theirs = record.estimate(TEACHER, "rouge_l", decoding)
        ours = record.estimate(record.distilled, "rouge_l", decoding)
        if theirs is not None and ours is not None:
            return (
                f"The teacher itself reaches Rouge-L {number(theirs.mean, 1)} "
                f"{interval(theirs, 1)} {decoding_phrase(decoding)}, against "
                f"{number(ours.mean, 1)} {interval(ours, 1)}."
            )
    return ""


def _tuned(record: Record) -> list[str]:
    """Baselines whose temperature was tuned, against the student (tuned too, else at T = 1)."""
    sentences = []
    decoding = "tuned" if record.score(record.distilled or "", "tuned") else "sample"
    ours = record.estimate(record.distilled, "rouge_l", decoding)
    for label in record.baselines:
        score = record.score(label, "tuned")
        theirs = record.estimate(label, "rouge_l", "tuned")
        if score is None or theirs is None or ours is None or record.distilled is None:
            continue
        at = "" if score.temperature is None else f" (T = {score.temperature:g})"
        how = "tuned too" if decoding == "tuned" else decoding_phrase("sample")
        result = {
            "better": "higher, intervals disjoint",
            "worse": "lower, intervals disjoint",
            "overlap": "intervals overlap",
            "unknown": "no interval to compare by",
        }[verdict(ours, theirs, 1)]
        sentences.append(
            f"{model_name(label)} with its temperature tuned{at} reaches Rouge-L "
            f"{number(theirs.mean, 1)} {interval(theirs, 1)}; {model_name(record.distilled)} "
            f"({how}) {number(ours.mean, 1)} {interval(ours, 1)}: {result}."
        )
    return sentences
