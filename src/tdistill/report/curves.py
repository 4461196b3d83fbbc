"""Learning curves, drawn: small multiples of few lines, the mean over seeds strong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tdistill.report.figures import WIDTH, Drawn
from tdistill.report.measures import measure, model_name
from tdistill.report.result import START, Columns, Curve, Result
from tdistill.report.svg import (
    ACCENT,
    MUTED,
    RULE,
    SERIES,
    css_variable,
    drawing,
    plain_numbers,
    to_svg,
)
from tdistill.report.tables import families

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES_A_PANEL = 6
_MOST_POINTS = 400
_FEW_POINTS = 12
_SHARED = ("forward_kl", "set_kl", "leak", "implied_reward", "value")
_NOT_CURVES = {"step", "loss", "learning_rate"}

Curves = Mapping[str, Curve]
Scale = tuple[float, float] | None


@dataclass(frozen=True)
class CurveGroup:
    """A few objectives, with their colours and a panel for every shared measure."""

    title: str
    legend: list[tuple[str, str]]
    panels: list[Drawn]
    others: list[Drawn]


def curve_groups(result: Result) -> list[CurveGroup]:
    """All objectives in one group, or at most six of one family in each.

    A measure has one scale in all groups. What else was logged is drawn where one group holds all.
    """
    logged = {name for curve in result.curves.values() for name in curve.mean}
    names = [name for name in _SHARED if name in logged]
    shown = [x for x, c in result.curves.items() if any(name in c.mean for name in names)]
    parts = few_lines_each(result, shown)
    scales = {name: _scale(result.curves, name) if len(parts) > 1 else None for name in names}
    others = sorted(logged - set(_SHARED) - _NOT_CURVES) if len(parts) == 1 else []
    groups = []
    for i, (title, labels) in enumerate(parts):
        colours = line_colours(labels, result.distilled)
        lines = {x: result.curves[x] for x in labels}
        panels = [_panel(f"curve-{i}-{n}", n, lines, colours, scales[n]) for n in names]
        more = [
            _panel(
                f"logged-{j}", n, result.curves, line_colours(list(result.curves), result.distilled)
            )
            for j, n in enumerate(others)
        ]
        legend = [(model_name(x), css_variable(colours[x])) for x in labels]
        groups.append(CurveGroup(title, legend, panels, more))
    return groups


def loss_panels(result: Result) -> list[Drawn]:
    """The loss of every objective in a panel of its own: they are different functions."""
    drawn = []
    for i, (label, curve) in enumerate(result.curves.items()):
        if "loss" in curve.mean:
            colours = line_colours([label], result.distilled)
            panel = _panel(f"loss-{i}", "loss", {label: curve}, colours)
            drawn.append(Drawn(f"Loss, {model_name(label)}", "", panel.svg))
    return drawn


def few_lines_each(result: Result, labels: Sequence[str]) -> list[tuple[str, list[str]]]:
    """As few groups as the limit allows, with titles where there are several."""
    if len(labels) <= LINES_A_PANEL:
        return [("", list(labels))] if labels else []
    parts = []
    for family, members in families(result).items():
        own = [x for x in members if x in labels]
        number = math.ceil(len(own) / LINES_A_PANEL)
        ends = [round(i * len(own) / number) for i in range(number + 1)] if number else []
        for place, (a, b) in enumerate(pairwise(ends)):
            title = family if number == 1 else f"{family}, {place + 1} of {number}"
            parts.append((title, own[a:b]))
    return parts


def line_colours(labels: Sequence[str], distilled: str) -> dict[str, str]:
    """The accent for the distilled student, grey for the start, a colour for each other."""
    fixed = {distilled: ACCENT, START: MUTED}
    free = [*SERIES] if distilled in labels else [*SERIES, ACCENT]
    others = [x for x in labels if x not in fixed]
    colours = {x: free[i % len(free)] for i, x in enumerate(others)}
    return {x: fixed.get(x) or colours[x] for x in labels}


def _scale(curves: Curves, name: str) -> Scale:
    """Where nearly all of a measure is, over all objectives, once the first steps are over."""
    values: list[float] = []
    for curve in curves.values():
        points = _points(curve.mean, name)
        values += [y for _, y in points[len(points) // 20 :]]
    if not values:
        return None
    first, low, high, third = np.quantile(values, [0.05, 0.01, 0.99, 0.95])
    reach = third - first
    low, high = max(low, first - reach), min(high, third + reach)
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _panel(
    key: str, name: str, curves: Curves, colours: Mapping[str, str], scale: Scale = None
) -> Drawn:
    what, ends = measure(name), []
    with drawing(WIDTH, 2.3) as (figure, axes):
        figure.subplots_adjust(0.135, 0.185, 0.975, 0.96)
        for label, curve in curves.items():
            points = _points(curve.mean, name)
            if points:
                _line(axes, curve, name, colours[label])
                ends.append(f"{model_name(label)} from {points[0][1]:.3g} to {points[-1][1]:.3g}")
        if scale is not None:
            axes.set_ylim(scale)
        axes.grid(axis="y", color=RULE, lw=0.4)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(nbins=5)
        axes.set_xlabel("step", color=MUTED, labelpad=1)
        plain_numbers(axes)
        return Drawn(what.title, what.unit, to_svg(figure, key, what.title, "; ".join(ends)))


def _line(axes: Axes, curve: Curve, name: str, colour: str) -> None:
    """The mean strong; faint: each seed, or what was logged where there is one."""
    steps, values = _split(curve.mean, name)
    if len(steps) < _FEW_POINTS:
        axes.plot(steps, values, "-o", color=colour, lw=1.5, ms=3)
        return
    for seed in curve.seeds:
        seed_steps, logged = _split(seed, name)
        faint = logged if len(curve.seeds) == 1 else smoothed(logged)
        axes.plot(seed_steps, faint, color=colour, lw=0.7, alpha=0.3)
    axes.plot(steps, smoothed(values), color=colour, lw=1.7)


def _split(columns: Columns, name: str) -> tuple[list[float], list[float]]:
    points = _points(columns, name)
    return [x for x, _ in points], [y for _, y in points]


def _points(columns: Columns, name: str) -> list[tuple[float, float]]:
    pairs = zip(columns["step"], columns.get(name, []), strict=False)
    return thinned([(x, y) for x, y in pairs if x is not None and y is not None])


def thinned(
    points: Sequence[tuple[float, float]], most: int = _MOST_POINTS
) -> list[tuple[float, float]]:
    """At most ``most`` points, means over runs of equal length: long runs make no large page."""
    size = math.ceil(len(points) / most) if points else 1
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs]


def smoothed(values: Sequence[float], share: float = 0.03) -> list[float]:
    """Exponential mean that looks both ways and so does not lag; it reaches ``share`` each way."""
    decay = 1 - 1 / max(2.0, share * len(values))
    ahead = _running(values[::-1], decay)[::-1]
    both = zip(_running(values, decay), ahead, strict=True)
    return [(a + b) / (wa + wb) for (a, wa), (b, wb) in both]


def _running(values: Sequence[float], decay: float) -> list[tuple[float, float]]:
    """Exponentially weighted sum so far, and the sum of its weights."""
    total = weight = 0.0
    sums = []
    for value in values:
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        sums.append((total, weight))
    return sums
