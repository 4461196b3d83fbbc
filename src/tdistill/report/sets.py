"""The teacher's top-p sets, drawn: how large they are, and what truncation to them costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tdistill.report.figures import Drawn
from tdistill.report.result import Inspection
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def histogram_figure(cache: Inspection) -> Drawn | None:
    """How large the teacher's sets are: share of steps a bin, sizes on a logarithmic axis."""
    edges, counts = cache["set_size_histogram"]["edges"], cache["set_size_histogram"]["counts"]
    if sum(counts) <= 0:
        return None
    shares = [100 * c / sum(counts) for c in counts]
    with drawing(4.4, 2.6) as (figure, axes):
        figure.subplots_adjust(0.115, 0.175, 0.97, 0.90)
        left, right = edges[:-1], edges[1:]
        widths = [b - a for a, b in zip(left, right, strict=True)]
        axes.bar(left, shares, widths, align="edge", color=ACCENT, ec=PAPER, lw=0.8, alpha=0.8)
        axes.set_xscale("log")
        axes.grid(axis="y", color=RULE, lw=0.4)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.minorticks_off()
        plain_numbers(axes)
        axes.set_xlabel("members of the set (log scale)", color=MUTED, labelpad=1)
        top = max(shares) * 1.03
        sizes = sorted((cache["set_size"][key], key) for key in ("median", "mean"))
        for (size, key), side, gap in zip(sizes, ("right", "left"), (-3, 3), strict=True):
            axes.axvline(size, color=INK, lw=0.8, ls=(0, (3, 2)))
            offset: Any = {"xytext": (gap, 0), "textcoords": "offset points"}
            text = f"{key} {size:.3g}"
            axes.annotate(text, (size, top), **offset, ha=side, va="bottom", color=INK, fontsize=9)
        axes.set_xlim(edges[0] * 0.9, edges[-1])
        bins = zip(left, right, shares, strict=True)
        text = "; ".join(f"{a:g} to under {b:g}: {s:.1f}%" for a, b, s in bins)
        title = "Size of the teacher's top-p set"
        return Drawn(title, "% of steps", to_svg(figure, "set-size", title, text))


def bound_figure(cache: Inspection) -> Drawn | None:
    """Bound (3.3) on the cost of truncation next to kappa of Prop 2, in nats, against p."""
    lines = [
        ("\N{GREEK SMALL LETTER KAPPA}(p), Prop 2", MUTED, "--", _line(cache, "kappa")),
        ("(3.3), endless", SERIES[1], ":", _line(cache, "bound_stationary")),
        ("bound (3.3)", ACCENT, "-", _line(cache, "bound")),
    ]
    lines = [line for line in lines if line[3]]
    if not lines:
        return None
    with drawing(4.4, 2.6) as (figure, axes):
        figure.subplots_adjust(0.115, 0.175, 0.74, 0.95)
        for _, colour, style, points in lines:
            xs, ys = [x for x, _ in points], [y for _, y in points]
            axes.plot(xs, ys, style, marker="o", ms=4, color=colour, lw=1.6)
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.grid(axis="y", color=RULE, lw=0.4)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        plain_numbers(axes)
        axes.set_xlabel("set threshold p", color=MUTED, labelpad=1)
        _end_labels(axes, [(text, colour, points[-1][1]) for text, colour, _, points in lines])
        title = "Cost of truncating the teacher to its top-p set"
        words = []
        for text, _, _, points in lines:
            words.append(f"{text}: " + ", ".join(f"{y:.3g} at p = {x:g}" for x, y in points))
        return Drawn(title, "nats, log scale", to_svg(figure, "bounds", title, "; ".join(words)))


def _line(cache: Inspection, name: str) -> list[tuple[float, float]]:
    bounds: list[Any] = sorted(cache["bounds"], key=lambda bound: bound["set_top_p"])
    return [(b["set_top_p"], b[name]) for b in bounds if b[name] > 0 and math.isfinite(b[name])]


def _end_labels(axes: Axes, labels: list[tuple[str, str, float]]) -> None:
    """Name each line at its right end, pushed apart where two ends are close."""
    low, high = axes.get_ylim()
    place = -math.inf
    for text, colour, value in sorted(labels, key=lambda x: x[2]):
        share = math.log(value / low) / math.log(high / low)
        place = max(share, place + 0.10)
        axes.text(1.02, place, text, color=colour, va="center", transform=axes.transAxes)
