"""Means with their intervals, drawn: a figure a column of the score table, a row a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tdistill.report.measures import number
from tdistill.report.result import TEACHER, Estimate, Result
from tdistill.report.svg import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    RULE,
    SERIES,
    drawing,
    plain_numbers,
    to_svg,
)
from tdistill.report.tables import Column, TableRow, families, table_columns, table_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.0
_ROW = 0.2  # inches


@dataclass(frozen=True)
class Drawn:
    """A figure with its heading; ``title`` stands above the SVG on the page."""

    title: str
    unit: str
    svg: str


def family_colours(result: Result) -> dict[str, str]:
    """A colour for every family, the page's accent for that of the distilled student."""
    ours = result.objectives[result.distilled].family
    others = [family for family in families(result) if family != ours]
    return {ours: ACCENT} | {f: SERIES[i % len(SERIES)] for i, f in enumerate(others)}


def interval_figures(result: Result) -> list[Drawn]:
    """A figure for every column of the table that at least two models have."""
    figures = [_intervals(result, column) for column in table_columns(result)]
    return [figure for figure in figures if figure is not None]


def _intervals(result: Result, column: Column) -> Drawn | None:
    found = [
        (row, result.estimate(row.label, column.metric, row.decoding(column)))
        for row in table_rows(result)
    ]
    known = [(row, estimate) for row, estimate in found if estimate is not None]
    if len(known) < 2:
        return None
    places, colours = _places([row for row, _ in known]), family_colours(result)
    height = 0.55 + _ROW * (max(places) + 1)
    limits = axis_limits([estimate for _, estimate in known])
    with drawing(WIDTH, height) as (figure, axes):
        figure.subplots_adjust(0.35, 0.36 / height, 0.85, 1 - 0.04 / height)
        axes.set_xlim(limits)
        for y, (row, estimate) in zip(places, known, strict=True):
            _dot(axes, y, estimate, colours.get(row.family, MUTED), limits)
            written, ink = number(estimate.mean, column.measure.digits), _ink(result, row)
            where: Any = ("axes fraction", "data")
            axes.annotate(written, (1.05, y), xycoords=where, va="center", color=ink, fontsize=8)
            dashes = {TEACHER: (0, (3, 2)), result.baseline: (0, (1, 1.5))}.get(row.label)
            if dashes is not None and not row.tuned:
                axes.axvline(estimate.mean, color=MUTED, lw=0.8, ls=dashes, zorder=0)
        names = [clipped(row.name, 20) for row, _ in known]
        axes.set_yticks(places, names, ha="left", fontsize=8)
        axes.set_ylim(max(places) + 0.6, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK, pad=72 * 0.345 * WIDTH)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=RULE, lw=0.4)
        axes.locator_params(axis="x", nbins=5)
        plain_numbers(axes, which="x")
        text = "; ".join(f"{row.name} {number(e.mean, 3)}" for row, e in known)
        name = f"interval-{column.metric}-{column.decoding or 'teacher'}"
        return Drawn(column.title, column.measure.unit, to_svg(figure, name, column.title, text))


def _ink(result: Result, row: TableRow) -> str:
    return INK if row.label in (result.distilled, result.baseline) else MUTED


def _places(rows: Sequence[TableRow]) -> list[float]:
    """Rows from the top, with a gap between families."""
    places: list[float] = []
    for i, row in enumerate(rows):
        gap = 0.6 if i and row.family != rows[i - 1].family else 0.0
        places.append(places[-1] + 1 + gap if places else 0.0)
    return places


def axis_limits(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Ends of the axis: those of the intervals, but not so far that outliers squeeze the rest."""
    bounds = np.array(
        [[x if x is not None else e.mean for x in (e.low, e.high)] for e in estimates]
    )
    means = np.array([e.mean for e in estimates])
    first, third = np.quantile(means, [0.25, 0.75])
    reach = 3 * (third - first) + 1e-9
    inside = (means >= first - reach) & (means <= third + reach)
    low, high = float(bounds[inside].min()), float(bounds[inside].max())
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _dot(
    axes: Axes, y: float, estimate: Estimate, colour: str, limits: tuple[float, float]
) -> None:
    """A dot with its interval, or an arrow at the end of the axis beyond which it is."""
    left, right = limits
    if not left <= estimate.mean <= right:
        end, sign = (left, "<") if estimate.mean < left else (right, ">")
        axes.plot([end], [y], sign, color=colour, ms=5, clip_on=False)
        return
    if estimate.low is not None and estimate.high is not None:
        axes.plot([max(estimate.low, left), min(estimate.high, right)], [y, y], color=colour, lw=2)
    axes.plot([estimate.mean], [y], "o", color=colour, ms=4.6, mec=PAPER, mew=0.7)


def clipped(label: str, most: int = 16) -> str:
    """A label short enough to stand beside an axis."""
    return label if len(label) <= most else label[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
