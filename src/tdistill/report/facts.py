"""Plain values as the small two-column tables of a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tdistill.progress import duration
from tdistill.report.result import START, TEACHER, Result


@dataclass(frozen=True)
class Fact:
    """One line of a two-column table."""

    name: str
    value: str


def facts(part: Mapping[str, Any], *, grouped: bool = False) -> list[Fact]:
    """Leaves as text; ``grouped`` writes whole numbers with thousands apart, as seeds are not."""
    return [
        Fact(name, f"{value:,}" if grouped and type(value) is int else _written(value))
        for name, value in _leaves(part)
    ]


def setup(result: Result) -> list[tuple[str, list[Fact]]]:
    """Small tables: counts, parameters, timings, seeds, versions, and the recipe by section."""
    labels = {"teacher": TEACHER, "start": START, "distilled student": result.distilled}
    parameters = {name: result.parameters[label] for name, label in labels.items()}
    tables = [
        ("Counts", facts(result.counts, grouped=True)),
        ("Parameters", facts(parameters, grouped=True)),
        ("Layers of the student", facts(result.layers)),
        ("Wall-clock time", _times(result)),
        ("Seeds", facts(result.seeds)),
        ("Versions", facts(result.versions)),
    ]
    parts = {k: v for k, v in result.recipe.items() if isinstance(v, Mapping)}
    tables.append(("Recipe", facts({k: v for k, v in result.recipe.items() if k not in parts})))
    tables += [(f"Recipe: {k}", facts(v)) for k, v in parts.items() if k != "objectives"]
    return [(title, lines) for title, lines in tables if lines]


def settings(result: Result) -> list[tuple[str, str, str, str]]:
    """Label, family, what it minimises, and the settings of every objective."""
    return [
        (
            label,
            about.family,
            about.minimises,
            ", ".join(f"{f.name} {f.value}" for f in facts(result.recipe["objectives"][label])),
        )
        for label, about in result.objectives.items()
    ]


def _times(result: Result) -> list[Fact]:
    """Of the shared work, and of training and judging all models; mean over training seeds."""
    seconds = asdict(result.seconds)
    lines = [Fact(name, duration(value)) for name, value in seconds["groundwork"].items()]
    for name in ("train", "evaluate"):
        lines.append(Fact(f"{name}, all models", duration(sum(seconds[name].values()))))
    total = sum(sum(part.values()) for part in seconds.values())
    return [*lines, Fact("total for one training seed", duration(total))]


def _leaves(part: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in part.items():
        if isinstance(value, Mapping):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else _written_list(value)


def _written_list(value: object) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(x, (str, int, float)) for x in value):
        return ", ".join(map(_written, value)) or "none"
    return json.dumps(value, ensure_ascii=False, default=str)
