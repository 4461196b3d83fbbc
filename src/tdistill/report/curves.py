"""Learning curves, drawn: one axis a measure for all models, the mean over seeds strong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tdistill.report.choice import MOST_AT_FIRST, numbers
from tdistill.report.figures import WIDTH, Drawn
from tdistill.report.measures import measure, model_name
from tdistill.report.result import Columns, Curve, Result
from tdistill.report.svg import (
    MUTED,
    RULE,
    drawing,
    model_colour,
    of_model,
    plain_numbers,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_MOST_POINTS = 400
_FEW_POINTS = 12
_SHARED = ("forward_kl", "set_kl", "leak", "implied_reward", "value")
_NOT_CURVES = {"step", "loss", "learning_rate"}


@dataclass(frozen=True)
class Curves:
    """Panels with the lines of all models together, and those of what else was logged."""

    models: list[str]
    panels: list[Drawn]
    others: list[Drawn]


def learning_curves(result: Result) -> Curves | None:
    """Every measure on one axis for all models; None where nothing shared was logged."""
    curves = {x: result.curves[x] for x in result.models if x in result.curves}
    logged = {name for curve in curves.values() for name in curve.mean}
    names = [name for name in _SHARED if name in logged]
    if not names:
        return None
    others = sorted(logged - set(_SHARED) - _NOT_CURVES)
    number = numbers(result)
    panels = [_panel(f"curve-{name}", name, curves, number) for name in names]
    more = [_panel(f"logged-{i}", name, curves, number) for i, name in enumerate(others)]
    drawn = [label for label, curve in curves.items() if set(names) & set(curve.mean)]
    return Curves(drawn, panels, more)


def loss_panels(result: Result) -> list[tuple[str, Drawn]]:
    """The loss of every objective in a panel of its own: they are different functions."""
    drawn, number = [], numbers(result)
    for label in result.models:
        curve = result.curves.get(label)
        if curve and "loss" in curve.mean:
            panel = _panel(f"loss-{number[label]}", "loss", {label: curve}, number)
            title = f"Loss, {model_name(label)}"
            drawn.append((f"m{number[label]}", Drawn(title, "", panel.svg)))
    return drawn


def _scale(curves: Mapping[str, Curve], name: str) -> tuple[float, float] | None:
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


def _panel(key: str, name: str, curves: Mapping[str, Curve], number: Mapping[str, int]) -> Drawn:
    """One measure; of many models the axis is long enough for nearly all of what they reach."""
    what, ends = measure(name), []
    scale = _scale(curves, name) if len(curves) > MOST_AT_FIRST else None
    with drawing(WIDTH, 2.3) as (figure, axes):
        figure.subplots_adjust(0.135, 0.185, 0.975, 0.96)
        for label, curve in curves.items():
            points = _points(curve.mean, name)
            if points:
                of_model(number[label], _lines(axes, curve, name, model_colour(number[label])))
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


def _lines(axes: Axes, curve: Curve, name: str, colour: str) -> list[Artist]:
    """The mean strong; faint: each seed, or what was logged where there is one."""
    steps, values = _split(curve.mean, name)
    if len(steps) < _FEW_POINTS:
        return [*axes.plot(steps, values, "-o", color=colour, lw=1.5, ms=3)]
    lines: list[Artist] = []
    for seed in curve.seeds:
        seed_steps, logged = _split(seed, name)
        faint = logged if len(curve.seeds) == 1 else smoothed(logged)
        lines += axes.plot(seed_steps, faint, color=colour, lw=0.7, alpha=0.3)
    return [*lines, *axes.plot(steps, smoothed(values), color=colour, lw=1.7)]


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
