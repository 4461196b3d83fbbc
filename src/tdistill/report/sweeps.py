"""Quality against entropy and against diversity: curves, and what is left when they are matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdistill.report.choice import numbers
from tdistill.report.curves import Curves
from tdistill.report.figures import WIDTH, Drawn, axis_limits
from tdistill.report.measures import DASH, Measure, in_order, measure, model_name, number
from tdistill.report.result import TEACHER, Estimate, Matched, Result, SweepPoint
from tdistill.report.svg import (
    MUTED,
    RULE,
    drawing,
    model_colour,
    of_model,
    plain_numbers,
    to_svg,
)
from tdistill.report.tables import (
    VERDICTS,
    Cell,
    TableRow,
    table_rows,
    written,
    written_difference,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

VARIABLES = {
    "entropy": "Against the entropy of a token",
    "bigram_entropy": "Against diversity: the entropy of the bigrams of all responses",
}
"""What models are matched by, with the heading of its figures."""

QUALITIES = (*VERDICTS, "rouge_l", "teacher_nll", "reverse_kl")
"""What is compared where they match."""


@dataclass(frozen=True)
class Level:
    """A quality where a variable has a value: a column of the table of matched differences."""

    metric: str
    variable: str
    value: float

    @property
    def measure(self) -> Measure:
        """How the column's numbers are named and written."""
        return measure(self.metric)

    @property
    def place(self) -> str:
        """Where it is compared."""
        return f"at {number(self.value, 2)}"


def swept_qualities(result: Result) -> list[str]:
    """Those that were measured."""
    names = {name for points in result.sweep.values() for p in points for name in p.metrics}
    return [name for name in QUALITIES if name in names]


def sweep_curves(result: Result, variable: str) -> Curves:
    """A panel for every quality, with all models."""
    curves = {x: result.sweep[x] for x in result.models if x in result.sweep}
    panels = [_panel(result, curves, variable, quality) for quality in swept_qualities(result)]
    return Curves(list(curves), panels, [])


def _panel(
    result: Result, curves: Mapping[str, Sequence[SweepPoint]], variable: str, quality: str
) -> Drawn:
    along, what, words = measure(variable), measure(quality), []
    lines = {label: _line(points, variable, quality) for label, points in curves.items()}
    of, last = numbers(result), [result.baseline, TEACHER]  # these are drawn on top
    with drawing(WIDTH, 2.7) as (figure, axes):
        figure.subplots_adjust(0.135, 0.165, 0.975, 0.97)
        for label in sorted(lines, key=lambda x: last.index(x) if x in last else -1):
            line = lines[label]
            if not line:
                continue
            dashes = (0, (3, 2)) if label == TEACHER else "-"
            of_model(of[label], _drawn(axes, line, model_colour(of[label]), dashes))
            ys = [y.mean for _, y in line]
            ends = f"{number(ys[0], what.digits)} to {number(ys[-1], what.digits)}"
            words.append(f"{model_name(label)} from {ends}")
        axes.set_ylim(axis_limits([y for line in lines.values() for _, y in line]))
        axes.grid(color=RULE, lw=0.4)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(nbins=5)
        axes.set_xlabel(f"{along.title.lower()}, {along.unit}", color=MUTED, labelpad=1)
        plain_numbers(axes)
        key = f"sweep-{variable}-{quality}"
        return Drawn(what.title, what.unit, to_svg(figure, key, what.title, "; ".join(words)))


def _drawn(
    axes: Axes, line: Sequence[tuple[float, Estimate]], colour: str, dashes: Any
) -> list[Artist]:
    """A dot a temperature, with the band of the quality's interval."""
    xs, ys = [x for x, _ in line], [y.mean for _, y in line]
    low = [y.mean if y.low is None else y.low for _, y in line]
    high = [y.mean if y.high is None else y.high for _, y in line]
    band = axes.fill_between(xs, low, high, color=colour, alpha=0.13, lw=0)
    return [band, *axes.plot(xs, ys, marker="o", ls=dashes, color=colour, lw=1.5, ms=3.2)]


def _line(
    points: Sequence[SweepPoint], variable: str, quality: str
) -> list[tuple[float, Estimate]]:
    pairs = [(point.metrics.get(variable), point.metrics.get(quality)) for point in points]
    return [(x.mean, y) for x, y in pairs if x is not None and y is not None]


def level_columns(result: Result, variable: str) -> list[Level]:
    """Every quality at every value of a variable."""
    values = dict.fromkeys(row.level for row in _matched(result, variable))
    return [Level(quality, variable, x) for quality in swept_qualities(result) for x in values]


def matched_rows(result: Result) -> list[TableRow]:
    """The objectives that are held against the baseline."""
    known = {row.model for row in result.matched}
    return [row for row in table_rows(result) if row.label in known and not row.tuned]


def matched_cell(result: Result, row: TableRow, column: Level) -> Cell:
    """A difference with its corrected interval, or a dash where a curve does not reach."""
    found = _matched(result, column.variable, row.label)
    own = next(m.metrics.get(column.metric) for m in found if m.level == column.value)
    if own is None:
        return Cell(DASH, hint="beyond the end of a curve: nothing is claimed")
    return written_difference(own, column.measure)


def _matched(result: Result, variable: str, label: str | None = None) -> list[Matched]:
    rows = [row for row in result.matched if row.variable == variable]
    return [row for row in rows if label in (None, row.model)]


def sweep_table(result: Result) -> tuple[list[str], list[tuple[str, str, list[Cell]]]]:
    """Everything that was measured at every temperature.

    Returns:
        The metric names, and (model, temperature, cells) for each row.
    """
    points = [(label, point) for label, found in result.sweep.items() for point in found]
    names = in_order([name for _, point in points for name in point.metrics], [])
    rows = [
        (
            model_name(label),
            f"T = {point.temperature:g}",
            [written(point.metrics.get(name), measure(name)) for name in names],
        )
        for label, point in points
    ]
    return names, rows
