"""Putting a run that is done together: from the records of its stages to the result."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from tdistill import __version__
from tdistill.evaluation.evaluate import TEACHER_RESPONSES
from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.member_values import member_values
from tdistill.evaluation.reward import reward_traces
from tdistill.evaluation.served import ABSENT, TASKS_ABSENT
from tdistill.evidence.rows import Row
from tdistill.models.language_model import load
from tdistill.recipe import Recipe, recipe_dict
from tdistill.report import result as report
from tdistill.report.result import SAMPLED, START, TEACHER, TUNED, Estimate, Estimates, Result
from tdistill.run.estimates import estimate_of
from tdistill.run.pipeline import Run
from tdistill.run.sweeps import matched_to, sweep_points
from tdistill.teacher.cache.cached_rows import count_steps
from tdistill.teacher.inspection import inspect_cache
from tdistill.teacher.source import CachedTeacher
from tdistill.training.critic import CRITIC_FILE, load_critic

_TRACES = 3
_PACKAGES = ("torch", "transformers", "accelerate", "pyarrow")
_UNLOGGED = ("step", "epoch", "total_flos")

Record = dict[str, Any]
"""What a stage left."""


@dataclass(frozen=True)
class _Measured:
    """One model as it was judged, a record for every training seed.

    The teacher has one record, which stands for all seeds.
    """

    records: Sequence[Record]
    seeds: int

    @property
    def places(self) -> list[str]:
        """The decodings, and that of teacher responses."""
        return list(self.records[0]["per_prompt"])

    def samples(self, place: str, metric: str) -> list[Sample]:
        """What was measured, a sample for each record; none where one could not be."""
        found = [record["per_prompt"].get(place, {}).get(metric) for record in self.records]
        return [] if None in found else [Sample.from_dict(plain) for plain in found]

    def estimate(self, place: str, metric: str) -> Estimate | None:
        """Mean and interval."""
        return estimate_of(self.samples(place, metric))

    def less(self, other: _Measured, place: str, metric: str) -> Estimate | None:
        """The difference on the same prompts and training seeds."""
        at = SAMPLED if place == TUNED and TUNED not in other.places else place
        ours, theirs = self.samples(place, metric), other.samples(at, metric)
        ours, theirs = self._for_each_seed(ours), self._for_each_seed(theirs)
        return estimate_of(ours, theirs) if ours and theirs else None

    def _for_each_seed(self, samples: list[Sample]) -> list[Sample]:
        return samples * (self.seeds // len(samples)) if samples else []


def baseline_of(recipe: Recipe) -> str:
    """The objective that the others are compared with."""
    return recipe.baseline or next(iter(recipe.objectives))


def gather_result(run: Run) -> Result:
    """Versions, seeds, counts, scores, differences, curves and samples of a run.

    Args:
        run: its work is over; objectives that failed for some seed are left out and named.
    """
    recipe, ground, failed = run.recipe, run.groundwork, {label for _, label in run.failed}
    labels = [label for label in recipe.objectives if label not in failed]
    shared, seeds = ground.records(), [students.records() for students in run.seeds]
    judged = {TEACHER: _Measured([shared["evaluate-teacher"]], len(seeds))}
    for label in (START, *labels):
        judged[label] = _Measured([r[f"evaluate-{label}"] for r in seeds], len(seeds))
    discount = min(recipe.objectives[recipe.distilled].discount, 0.999)
    inspection: Any = inspect_cache(ground.open_cache("train"), discount=discount)
    return Result(
        format=report.FORMAT,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        recipe=recipe_dict(recipe),
        distilled=recipe.distilled,
        baseline=baseline_of(recipe),
        seeds=_seeds(run),
        counts=_counts(run, labels),
        parameters={x: measured.records[0]["parameters"] for x, measured in judged.items()},
        seconds=_seconds(shared, seeds, (START, *labels)),
        objectives={label: _described(recipe.objectives[label]) for label in labels},
        failed={f"{label}, seed {seed}": why for (seed, label), why in run.failed.items()},
        temperatures=_temperatures(judged),
        scores=[score for x, measured in judged.items() for score in _scores(x, measured)],
        imitation=[report.Imitation(x, _on_teacher(m)) for x, m in judged.items()],
        differences=_differences(judged, [recipe.distilled, baseline_of(recipe)]),
        sweep={x: points for x, m in judged.items() if (points := sweep_points(m.records))},
        matched=_matched(recipe, {label: judged[label].records for label in labels}),
        cache=inspection,
        curves={
            x: _curve([r[x]["history"] for r in seeds])
            for x in (START, *labels)
            if all("history" in r[x] for r in seeds)
        },
        samples=_samples(run, judged),
        reward_traces=_traces(run),
        value_traces=[
            trace for label in labels if _has_critic(run, label) for trace in _values(run, label)
        ],
        layers=shared["student"].get("layers", {}),
        warnings={
            f"{x}, seed {seed}": found
            for seed, records in enumerate(seeds)
            for x in (START, *labels)
            if (found := records[x].get("warnings"))
        },
        absent=_absent(run),
    )


def _absent(run: Run) -> dict[str, str]:
    """What could not be measured, and why, by what it is called here."""
    if run.groundwork.judges_at_hand:
        return {}
    tasks = {"tasks": TASKS_ABSENT} if run.recipe.evaluation.tasks else {}
    cure = "; evaluation.teacher: local measures it by the teacher's weights"
    return {name: f"{why}{cure}" for name, why in (ABSENT | tasks).items()}


def _versions() -> dict[str, str]:
    """Of this package, of Python, and of the packages that results depend on."""
    own = {"tdistill": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in _PACKAGES}


def _seeds(run: Run) -> dict[str, Any]:
    recipes = [students.recipe for students in run.seeds]
    return {
        "rollouts": run.recipe.rollouts.seed,
        "start": [recipe.start.training.seed for recipe in recipes if recipe.start],
        "training": [recipe.training.seed for recipe in recipes],
        "generation": list(range(run.recipe.evaluation.seeds)),
    }


def _counts(run: Run, labels: Sequence[str]) -> dict[str, int]:
    ground = run.groundwork
    rows, examples = ground.sample_rollouts(), ground.load_examples()
    return {
        **{f"{split}_prompts": len(examples[split]) for split in ("train", "valid", "test")},
        "rollout_rows": len(rows),
        "rollout_steps": count_steps(rows),
        "held_out_rows": len(ground.sample_held_out()),
        "objectives": len(labels),
        "training_seeds": len(run.seeds),
    }


def _described(objective: Any) -> report.Described:
    card = getattr(objective, "card", None)
    family, minimises = ("own", "") if card is None else (card.family, card.minimises)
    return report.Described(objective.name, family, minimises)


def _seconds(
    shared: Mapping[str, Record], seeds: Sequence[Mapping[str, Record]], labels: Sequence[str]
) -> report.Seconds:
    def of(stage: str) -> float:
        return _mean([_whole_seconds(records, stage) for records in seeds]) or 0.0

    return report.Seconds(
        groundwork={stage: record["seconds"] for stage, record in shared.items()},
        train={label: of(label) for label in labels},
        evaluate={label: of(f"evaluate-{label}") for label in labels},
    )


def _whole_seconds(records: Mapping[str, Record], stage: str) -> float:
    """Of a stage, and of the training whose values it folded by another weight."""
    origin = records[stage].get("folded_from")
    return records[stage]["seconds"] + (0.0 if origin is None else records[origin]["seconds"])


def _temperatures(judged: Mapping[str, _Measured]) -> dict[str, list[float]]:
    found = {
        label: [s["temperature"] for r in m.records for s in r["scores"] if s["decoding"] == TUNED]
        for label, m in judged.items()
    }
    return {label: temperatures for label, temperatures in found.items() if temperatures}


def _scores(label: str, measured: _Measured) -> list[report.Score]:
    first, *others = [record["scores"] for record in measured.records]
    rows = []
    for number, row in enumerate(first):
        same = all(other[number]["temperature"] == row["temperature"] for other in others)
        metrics = {name: measured.estimate(row["decoding"], name) for name in row["metrics"]}
        temperature = row["temperature"] if same else None
        kept = {name: row[name] for name in ("decoding", "sampling_top_p", "seeds", "prompts")}
        rows.append(report.Score(label, temperature=temperature, metrics=metrics, **kept))
    return rows


def _on_teacher(measured: _Measured) -> Estimates:
    names = measured.records[0]["imitation"]["metrics"]
    return {name: measured.estimate(TEACHER_RESPONSES, name) for name in names}


def _differences(
    judged: Mapping[str, _Measured], references: Iterable[str]
) -> list[report.Difference]:
    """Every model less each reference."""
    rows = []
    for less in dict.fromkeys(references):
        for label, own in judged.items():
            for place in own.places if label != less else ():
                names = own.records[0]["per_prompt"][place]
                metrics = {name: own.less(judged[less], place, name) for name in names}
                decoding = None if place == TEACHER_RESPONSES else place
                rows.append(report.Difference(label, less, decoding, metrics))
    return rows


def _matched(recipe: Recipe, judged: Mapping[str, Sequence[Record]]) -> list[report.Matched]:
    config, baseline = recipe.evaluation.sweep, baseline_of(recipe)
    return [] if config is None else matched_to(baseline, judged, levels=config.levels)


def _curve(histories: Sequence[Sequence[dict[str, float]]]) -> report.Curve:
    """Everything logged, in columns: the mean over seeds, and each seed."""
    seeds = [_columns(history) for history in histories]
    steps = seeds[0]["step"]
    mean: report.Columns = {"step": steps}
    for name in seeds[0]:
        columns = [seed.get(name, [None] * len(steps)) for seed in seeds]
        if name != "step" and all(len(column) == len(steps) for column in columns):
            mean[name] = [_mean(values) for values in zip(*columns, strict=True)]
    return report.Curve(mean, seeds)


def _columns(history: Sequence[dict[str, float]]) -> report.Columns:
    names = dict.fromkeys(name for entry in history for name in entry if name not in _UNLOGGED)
    columns: report.Columns = {"step": [entry["step"] for entry in history]}
    return columns | {name: [_finite(entry.get(name)) for entry in history] for name in names}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _samples(run: Run, judged: Mapping[str, _Measured]) -> list[report.PromptResponses]:
    shown = run.groundwork.load_examples()["test"][: run.recipe.evaluation.samples]
    texts = {label: measured.records[0]["samples"] for label, measured in judged.items()}
    return [
        report.PromptResponses(e.question or e.prompt, {label: texts[label][i] for label in texts})
        for i, e in enumerate(shown)
    ]


def _traces(run: Run) -> list[report.Trace]:
    ground, label = run.groundwork, run.recipe.distilled
    rows = ground.sample_held_out()[:_TRACES]
    traces: list[dict[str, Any]] = reward_traces(
        label,
        load(run.seeds[0].model_folder(label)),
        run.recipe.objectives[label],
        rows,
        CachedTeacher(ground.open_cache("test")),
        vocabulary_size=ground.count_vocabulary(),
    )
    return [report.Trace(**trace) for trace in _with_questions(run, rows, traces)]


def _has_critic(run: Run, label: str) -> bool:
    return (run.seeds[0].model_folder(label) / CRITIC_FILE).exists()


def _values(run: Run, label: str) -> list[report.ValueTrace]:
    ground, objective = run.groundwork, run.recipe.objectives[label]
    folder, rows = run.seeds[0].model_folder(label), ground.sample_held_out()[:_TRACES]
    assert objective.critic_config is not None, "it kept a critic"
    model = load(folder)
    traces = member_values(
        label,
        model,
        load_critic(folder, objective.critic_config).to(model.device),
        objective,
        rows=rows,
        source=CachedTeacher(ground.open_cache("test")),
        vocabulary_size=ground.count_vocabulary(),
    )
    return [report.ValueTrace(**trace) for trace in _with_questions(run, rows, traces)]


def _with_questions(run: Run, rows: Sequence[Row], traces: list[Record]) -> list[Record]:
    """The same with prompts as they were asked, without a template."""
    questions = {
        e.prompt_ids: e.question or e.prompt for e in run.groundwork.load_examples()["test"]
    }
    pairs = zip(rows, traces, strict=True)
    return [{**trace, "prompt": questions[row.prompt_ids]} for row, trace in pairs]
