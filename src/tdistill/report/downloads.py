"""The numbers behind the page as CSV, held in links: they are saved without network or script."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tdistill.report.measures import measure
from tdistill.report.result import Estimate, Result

_ESTIMATE = ("metric", "unit", "mean", "low", "high", "seeds")
Line = tuple[object, ...]


@dataclass(frozen=True)
class Download:
    """A file inside the page: ``address`` holds all of it."""

    name: str
    rows: int
    address: str


def downloads(result: Result) -> list[Download]:
    """Scores, paired differences, and the sweep; a file without rows is left out."""
    files = [
        ("scores.csv", ("model", "decoding", *_ESTIMATE), _scores(result)),
        ("differences.csv", ("model", "less", "decoding", *_ESTIMATE), _differences(result)),
        ("sweep.csv", ("model", "temperature", *_ESTIMATE), _sweep(result)),
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
