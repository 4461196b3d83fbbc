"""Which models the figures and responses show together, and in which colours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tdistill.report.measures import model_name
from tdistill.report.result import START, TEACHER, Result
from tdistill.report.svg import ACCENT, INK, MUTED, SERIES, css_variable
from tdistill.report.tables import divergence_metric, families

MOST_AT_FIRST = 6


@dataclass(frozen=True)
class Choice:
    """A model that a reader may show or hide: all of the class ``key`` on the page.

    ``shown`` is whether it is at first; ``fixed`` whether its colour is its own in any choice.
    """

    label: str
    name: str
    key: str
    colour: str
    shown: bool
    fixed: bool


def numbers(result: Result) -> dict[str, int]:
    """The number of every model: its place among teacher, start and objectives."""
    return {label: number for number, label in enumerate(result.models)}


def choices(result: Result) -> dict[str, list[Choice]]:
    """What can be shown or hidden, by family; teacher and start come first and have none."""
    first, fixed, number = first_shown(result), _fixed(result), numbers(result)
    colours = _colours(result)
    parts = {"": [TEACHER, START], **families(result)}
    return {
        family: [
            Choice(
                label=x,
                name=model_name(x),
                key=f"m{number[x]}",
                colour=css_variable(colours[x]),
                shown=x in first,
                fixed=x in fixed,
            )
            for x in members
        ]
        for family, members in parts.items()
    }


def first_shown(result: Result) -> list[str]:
    """All models, or of many: teacher, start, distilled, baseline, then the best of each family.

    The best has the lowest mean divergence; of many families the first ones have theirs shown.
    """
    if len(result.objectives) <= MOST_AT_FIRST:
        return result.models
    best = [_best(result, members) for members in families(result).values()]
    fixed = [TEACHER, START]
    objectives = list(dict.fromkeys([result.distilled, result.baseline, *best]))
    return fixed + objectives[:MOST_AT_FIRST]


def _best(result: Result, labels: Iterable[str]) -> str:
    def size(label: str) -> float:
        estimate = result.estimate(label, divergence_metric(result), None)
        return float("inf") if estimate is None else estimate.mean

    return min(labels, key=size)


def _fixed(result: Result) -> dict[str, str]:
    return {TEACHER: INK, START: MUTED, result.distilled: ACCENT}


def _colours(result: Result) -> dict[str, str]:
    """Fixed ones for teacher, start and distilled; the others take turns, those shown first."""
    fixed = _fixed(result)
    order = dict.fromkeys([*first_shown(result), *result.models])
    others = [label for label in order if label not in fixed]
    return fixed | {label: SERIES[i % len(SERIES)] for i, label in enumerate(others)}
