"""What a finished run amounts to: the content of ``metrics.json``."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tdistill import __version__
from tdistill.evaluation.reward import reward_traces
from tdistill.models.language_model import load
from tdistill.recipe import recipe_dict
from tdistill.teacher.inspection import inspect_cache
from tdistill.teacher.source import CachedTeacher

if TYPE_CHECKING:
    from tdistill.run.pipeline import Run

_TRACES = 3
_PACKAGES = ("torch", "transformers", "accelerate", "pyarrow")


def gather_metrics(run: Run) -> dict[str, Any]:
    """Versions, seeds, counts, scores, curves and samples of a run whose stages are all done.

    Args:
        run: the run.

    Returns:
        Plain values, the structure of ``metrics.json``.
    """
    recipe, records = run.recipe, run.records()
    judged = {label: records[f"evaluate-{label}"] for label in run.labels}
    cache = run.cache("train")
    objective = recipe.objectives[recipe.distilled]
    inspection = inspect_cache(cache, discount=min(objective.discount, 0.999))
    return {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "recipe": recipe_dict(recipe),
        "distilled": recipe.distilled,
        "seeds": {
            "rollouts": recipe.rollouts.seed,
            "training": recipe.training.seed,
            "generation": list(range(recipe.evaluation.seeds)),
        },
        "counts": {
            "train_prompts": len(run.examples["train"]),
            "valid_prompts": len(run.examples["valid"]),
            "test_prompts": len(run.examples["test"]),
            "rollout_rows": len(run.rollouts),
            "rollout_steps": sum(len(row.response_ids) for row in run.rollouts),
        },
        "parameters": {
            "teacher": judged["teacher"]["parameters"],
            "student": judged[recipe.distilled]["parameters"],
        },
        "seconds": _seconds(run, records),
        "scores": [score for record in judged.values() for score in record["scores"]],
        "imitation": [record["imitation"] for record in judged.values()],
        "cache": inspection,
        "curves": {
            label: records[label]["history"]
            for label in run.labels
            if "history" in records.get(label, {})
        },
        "samples": _samples(run, judged),
        "reward_traces": _traces(run),
    }


def versions() -> dict[str, str]:
    """Of this package, of Python, and of the packages that results depend on."""
    own = {"tdistill": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in _PACKAGES}


def _seconds(run: Run, records: dict[str, Any]) -> dict[str, Any]:
    stages = ("teacher", "rollouts", "held-out", "student", "start")
    seconds: dict[str, Any] = {s: records[s]["seconds"] for s in stages if s in records}
    seconds["train"] = {label: records[label]["seconds"] for label in run.recipe.objectives}
    seconds["evaluate"] = sum(records[f"evaluate-{label}"]["seconds"] for label in run.labels)
    return seconds


def _samples(run: Run, judged: dict[str, Any]) -> list[dict[str, Any]]:
    shown = run.examples["test"][: run.recipe.evaluation.samples]
    prompts = [example.question or example.prompt for example in shown]
    return [
        {"prompt": prompt, "responses": {label: judged[label]["samples"][i] for label in judged}}
        for i, prompt in enumerate(prompts)
    ]


def _traces(run: Run) -> list[dict[str, Any]]:
    label = run.recipe.distilled
    questions = {e.prompt_ids: e.question or e.prompt for e in run.examples["test"]}
    rows = run.held_out_rollouts[:_TRACES]
    traces = reward_traces(
        label,
        load(run.model_folder(label)),
        run.recipe.objectives[label],
        rows,
        CachedTeacher(run.cache("test")),
        vocabulary_size=run.vocabulary_size,
    )
    return [t | {"prompt": questions[r.prompt_ids]} for t, r in zip(traces, rows, strict=True)]
