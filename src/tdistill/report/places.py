"""The divergence along the response, on own prefixes and on the teacher's: exposure bias, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tdistill.evaluation.places import last_step
from tdistill.report.choice import numbers
from tdistill.report.curves import Curves
from tdistill.report.figures import WIDTH, Drawn
from tdistill.report.measures import measure, model_name
from tdistill.report.measures import number as decimal
from tdistill.report.result import SAMPLED, Estimate, Estimates, Result
from tdistill.report.svg import (
    MUTED,
    RULE,
    drawing,
    model_colour,
    of_model,
    plain_numbers,
    to_svg,
)
from tdistill.report.tables import divergence_metric

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Line = list[tuple[int, Estimate]]


def places(result: Result) -> Curves | None:
    """A panel for all objectives; None where nothing was measured."""
    decodings, metric = result.decodings, divergence_metric(result)
    decoding = SAMPLED if SAMPLED in decodings else next(iter(decodings), "")
    own = {score.model: score.metrics for score in result.scores if score.decoding == decoding}
    given = {row.model: row.metrics for row in result.imitation}
    lines = {
        x: (_line(own.get(x, {}), f"own_{metric}"), _line(given.get(x, {}), metric))
        for x in result.objectives
    }
    shown = {x: pair for x, pair in lines.items() if len(pair[0]) > 1}
    return Curves(list(shown), [_panel(metric, shown, numbers(result))], []) if shown else None


def _line(metrics: Estimates, metric: str) -> Line:
    found = [(last_step(name, metric), estimate) for name, estimate in metrics.items()]
    return sorted((step, e) for step, e in found if step is not None and e is not None)


def _panel(metric: str, lines: Mapping[str, tuple[Line, Line]], number: Mapping[str, int]) -> Drawn:
    words, title = [], f"{measure(metric).title} along the response"
    with drawing(WIDTH, 2.5) as (figure, axes):
        figure.subplots_adjust(0.135, 0.18, 0.975, 0.97)
        for label, (own, given) in lines.items():
            of_model(number[label], _drawn(axes, own, given, model_colour(number[label])))
            ends = [decimal(y.mean, 2) for y in (own[0][1], own[-1][1])]
            words.append(f"{model_name(label)} from {ends[0]} to {ends[1]} on its own prefixes")
        ticks = sorted({x for pair in lines.values() for line in pair for x, _ in line})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(x) for x in ticks])
        axes.minorticks_off()
        axes.grid(axis="y", color=RULE, lw=0.4)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("up to step", color=MUTED, labelpad=1)
        plain_numbers(axes, which="y")
        return Drawn(title, "nats/step", to_svg(figure, "places-0", title, "; ".join(words)))


def _drawn(axes: Axes, own: Line, given: Line, colour: str) -> list[Artist]:
    """Dashed: on the teacher's prefixes; with a band: on the model's own."""
    drawn: list[Artist] = []
    for line, dashes in ((given, (0, (3, 2))), (own, "-")):
        xs, ys = [x for x, _ in line], [y.mean for _, y in line]
        drawn += axes.plot(xs, ys, ls=dashes, marker="o", color=colour, lw=1.5, ms=3)
    low = [y.mean if y.low is None else y.low for _, y in own]
    high = [y.mean if y.high is None else y.high for _, y in own]
    xs = [x for x, _ in own]
    return [*drawn, axes.fill_between(xs, low, high, color=colour, alpha=0.13, lw=0)]
