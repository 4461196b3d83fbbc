"""The numbers behind the page as CSV, held in links: they are saved without network or script."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tdistill.report.measures import measure
from tdistill.report.result import Columns, Estimate, Result

_ESTIMATE = ("metric", "unit", "mean", "low", "high", "seeds")
_MOST_STEPS = 400  # of a curve, as many as are drawn
Line = tuple[object, ...]


@dataclass(frozen=True)
class Download:
    """A file inside the page: ``address`` holds all of it."""

    name: str
    rows: int
    address: str


def downloads(result: Result) -> list[Download]:
    """Scores, paired differences, sweep, learning curves; a file without rows is left out."""
    logged = dict.fromkeys(name for curve in result.curves.values() for name in curve.mean)
    curves = [row for x, c in result.curves.items() for row in _curve(x, c.mean, list(logged))]
    files = [
        ("scores.csv", ("model", "decoding", *_ESTIMATE), _scores(result)),
        ("differences.csv", ("model", "less", "decoding", *_ESTIMATE), _differences(result)),
        ("sweep.csv", ("model", "temperature", *_ESTIMATE), _sweep(result)),
        ("curves.csv", ("model", *logged), curves),
    ]
    return [_download(name, head, rows) for name, head, rows in files if rows]


def _scores(result: Result) -> list[Line]:
    given = [(row.model, "teacher's responses", row.metrics) for row in result.imitation]
    own = [(row.model, row.decoding, row.metrics) for row in result.scores]
    return [
        (model, where, *rest) for model, where, found in given + own for rest in _estimates(found)
    ]


def _differences(result: Result) -> list[Line]:
    return [
        (row.model, row.less, row.decoding or "teacher's responses", *rest)
        for row in result.differences
        for rest in _estimates(row.metrics)
    ]


def _sweep(result: Result) -> list[Line]:
    return [
        (model, point.temperature, *rest)
        for model, points in result.sweep.items()
        for point in points
        for rest in _estimates(point.metrics)
    ]


def _curve(model: str, columns: Columns, names: Sequence[str]) -> Iterator[Line]:
    """Means over the training seeds; of a long curve, also over runs of steps of equal length."""
    size = math.ceil(len(columns["step"]) / _MOST_STEPS) or 1
    for first in range(0, len(columns["step"]), size):
        cells = (columns.get(name, [])[first : first + size] for name in names)
        yield (model, *map(_mean, cells))


def _mean(values: Sequence[float | None]) -> float | None:
    """Of what was logged, to six digits; an empty cell where nothing was."""
    known = [value for value in values if value is not None]
    return float(f"{sum(known) / len(known):.6g}") if known else None


def _estimates(metrics: Mapping[str, Estimate | None]) -> list[Line]:
    return [
        (name, measure(name).unit, e.mean, e.low, e.high, " ".join(map(repr, e.seeds)))
        for name, e in metrics.items()
        if e is not None
    ]


def _download(name: str, head: Line, rows: list[Line]) -> Download:
    text = io.StringIO()
    csv.writer(text).writerows(map(_inert, [head, *rows]))
    held = base64.b64encode(text.getvalue().encode(errors="replace")).decode()
    return Download(name, len(rows), f"data:text/csv;charset=utf-8;base64,{held}")


def _inert(row: Iterable[object]) -> list[object]:
    """A spreadsheet takes a text that begins with one of these signs for a formula."""
    acts = ("=", "+", "-", "@", "\t", "\r")
    return [f"'{x}" if isinstance(x, str) and x.startswith(acts) else x for x in row]
