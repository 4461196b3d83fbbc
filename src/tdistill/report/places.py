"""Forward KL along the response, on own prefixes and on the teacher's: exposure bias, drawn."""

from __future__ import annotations

from collections.abc import Mapping

from tdistill.evaluation.places import last_step
from tdistill.report.curves import CurveGroup, few_lines_each, line_colours
from tdistill.report.figures import WIDTH, Drawn
from tdistill.report.measures import model_name, number
from tdistill.report.result import SAMPLED, Estimate, Estimates, Result
from tdistill.report.svg import MUTED, RULE, css_variable, drawing, plain_numbers, to_svg

_TITLE = "Forward KL along the response"
Line = list[tuple[int, Estimate]]


def place_groups(result: Result) -> list[CurveGroup]:
    """A panel for at most six objectives each; none where nothing was measured."""
    decodings = result.decodings
    decoding = SAMPLED if SAMPLED in decodings else next(iter(decodings), "")
    own = {score.model: score.metrics for score in result.scores if score.decoding == decoding}
    given = {row.model: row.metrics for row in result.imitation}
    groups = []
    for i, (title, labels) in enumerate(few_lines_each(result, list(result.objectives))):
        lines = {
            x: (_line(own.get(x, {}), "own_forward_kl"), _line(given.get(x, {}), "forward_kl"))
            for x in labels
        }
        shown = {x: pair for x, pair in lines.items() if len(pair[0]) > 1}
        if shown:
            colours = line_colours(list(shown), result.distilled)
            legend = [(model_name(x), css_variable(colours[x])) for x in shown]
            groups.append(CurveGroup(title, legend, [_panel(f"places-{i}", shown, colours)], []))
    return groups


def _line(metrics: Estimates, metric: str) -> Line:
    found = [(last_step(name, metric), estimate) for name, estimate in metrics.items()]
    return sorted((step, e) for step, e in found if step is not None and e is not None)


def _panel(key: str, lines: Mapping[str, tuple[Line, Line]], colours: Mapping[str, str]) -> Drawn:
    words = []
    with drawing(WIDTH, 2.5) as (figure, axes):
        figure.subplots_adjust(0.135, 0.18, 0.975, 0.97)
        for label, (own, given) in lines.items():
            for line, dashes in ((given, (0, (3, 2))), (own, "-")):
                xs, ys = [x for x, _ in line], [y.mean for _, y in line]
                axes.plot(xs, ys, ls=dashes, marker="o", color=colours[label], lw=1.5, ms=3)
            low = [y.mean if y.low is None else y.low for _, y in own]
            high = [y.mean if y.high is None else y.high for _, y in own]
            axes.fill_between(
                [x for x, _ in own], low, high, color=colours[label], alpha=0.13, lw=0
            )
            ends = [number(y.mean, 2) for y in (own[0][1], own[-1][1])]
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
        return Drawn(_TITLE, "nats/step", to_svg(figure, key, _TITLE, "; ".join(words)))
