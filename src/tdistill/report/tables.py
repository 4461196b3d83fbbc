"""The score table, once: the terminal and the page draw the same grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdistill.report.findings import verdict
from tdistill.report.measures import (
    DECODINGS,
    Measure,
    count,
    decoding_name,
    in_order,
    interval,
    measure,
    model_name,
    number,
)
from tdistill.report.records import START, TEACHER, Estimate, Record, read_record

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_SHORT = {"greedy": "greedy", "sample": "T = 1", "nucleus": "nucleus"}
_TERMINAL_TITLES = {
    "rouge_l": "Rouge",
    "teacher_nll": "NLL",
    "forward_kl": "KL",
    "leak": "leak",
    "response_tokens": "tokens",
}


@dataclass(frozen=True)
class Column:
    """One column: a metric, in a decoding or (None) on held-out teacher responses."""

    metric: str
    decoding: str | None
    group: str

    @property
    def measure(self) -> Measure:
        """How the column's numbers are named and written."""
        return measure(self.metric)


@dataclass(frozen=True)
class Cell:
    """One written number; ``best`` marks the best student and all that overlap with it."""

    mean: str
    spread: str = ""
    hint: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One model of the grid."""

    label: str
    name: str
    parameters: str
    cells: list[Cell]
    distilled: bool


@dataclass(frozen=True)
class Grid:
    """The score table before it is drawn."""

    columns: list[Column]
    rows: list[Row]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Column groups with the number of columns in each."""
        sizes: dict[str, int] = {}
        for column in self.columns:
            sizes[column.group] = sizes.get(column.group, 0) + 1
        return list(sizes.items())


def score_grid(record: Record) -> Grid:
    """Models as rows; Rouge-L and teacher NLL a decoding, then forward KL, leak and tokens.

    A model decoded at a tuned temperature is a further row, its numbers in the columns of sampling.
    Columns in which no model has a number are left out.
    """
    decodings = in_order([s.decoding for s in record.scores], list(DECODINGS))
    shared = ["sample" if d == "tuned" else d for d in decodings]
    columns = [
        Column(metric, decoding, decoding_name(decoding))
        for decoding in dict.fromkeys(shared)
        for metric in ("rouge_l", "teacher_nll")
    ]
    columns += [Column(metric, None, "Teacher responses") for metric in ("forward_kl", "leak")]
    length = "sample" if "sample" in shared else (shared or ["sample"])[0]
    columns.append(Column("response_tokens", length, f"Length, {_SHORT.get(length, length)}"))
    lines = [(m, tuned) for m in record.models for tuned in _decoded(record, m)]
    columns = [c for c in columns if any(_get(record, *line, c) is not None for line in lines)]
    rows = [_row(record, model, tuned, columns) for model, tuned in lines]
    return Grid(columns, rows)


def _decoded(record: Record, model: str) -> list[bool]:
    """The lines of a model: one in the shared decodings, one more if its temperature was tuned."""
    return [False, True] if record.score(model, "tuned") else [False]


def _row(record: Record, model: str, tuned: bool, columns: list[Column]) -> Row:
    score = record.score(model, "tuned") if tuned else None
    at = f" = {score.temperature:g}" if score and score.temperature is not None else ""
    return Row(
        label=model,
        name=f"{model_name(model)}, tuned T{at}" if tuned else model_name(model),
        parameters=count(record.parameter_count(model)),
        cells=[
            written(
                _get(record, model, tuned, c),
                c.measure,
                best=not tuned and _is_best(record, model, c),
            )
            for c in columns
        ],
        distilled=model == record.distilled,
    )


def full_rows(record: Record) -> tuple[list[str], list[tuple[str, str, list[Cell]]]]:
    """Every metric of every model and decoding.

    Returns:
        The metric names, and (model, decoding with seeds and prompts, cells) for each row.
    """
    names = in_order([n for s in record.scores for n in s.metrics], [])
    rows = []
    for score in record.scores:
        details = [decoding_name(score.decoding)]
        if score.decoding == "tuned" and score.temperature is not None:
            details.append(f"T = {score.temperature:g}")
        if score.seeds is not None:
            details.append(f"{score.seeds} seed{'' if score.seeds == 1 else 's'}")
        cells = [written(score.metrics.get(n), measure(n)) for n in names]
        rows.append((model_name(score.model), ", ".join(details), cells))
    return names, rows


def written(estimate: Estimate | None, what: Measure, *, best: bool = False) -> Cell:
    """An estimate as text: mean, half-width of the interval, and the interval as a hint."""
    if estimate is None:
        return Cell(number(None, 0), hint="not measured")
    half = estimate.half_width
    spread = "" if half is None else f"\N{PLUS-MINUS SIGN}{number(half, what.digits)}"
    hint = f"{what.title} {number(estimate.mean, what.digits + 1)}"
    return Cell(
        number(estimate.mean, what.digits),
        spread,
        f"{hint} {interval(estimate, what.digits + 1)} {what.unit}".strip(),
        best,
    )


def _get(record: Record, model: str, tuned: bool, column: Column) -> Estimate | None:
    if not tuned:
        return record.estimate(model, column.metric, column.decoding)
    return record.estimate(model, column.metric, "tuned") if column.decoding == "sample" else None


def _is_best(record: Record, model: str, column: Column) -> bool:
    """Best student mean of the column, or an interval that overlaps with the best one's."""
    better = column.measure.better
    students = [m for m in record.models if m != TEACHER]
    known = {
        m: e for m in students if (e := _get(record, m, False, column)) is not None and e.comparable
    }
    if better == 0 or model not in known or len(known) < 2:
        return False
    best = max(known.values(), key=lambda e: better * e.mean)
    return known[model] is best or verdict(known[model], best, better) == "overlap"


def score_table(metrics: Mapping[str, Any]) -> Table:
    """The score table for a terminal.

    Args:
        metrics: the structure of ``metrics.json``.

    Returns:
        A ``rich`` table: models as rows, columns grouped by decoding, each cell the mean and the
        half-width of its interval. Bold: best student of the column, or not separated from it.

    Raises:
        DataError: the structure is malformed.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = score_grid(read_record(metrics))
    caption = "mean \N{PLUS-MINUS SIGN} half-width; bold: best student, or overlaps with the best"
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
        caption=caption,
        caption_justify="left",
    )
    # Only the model's name may wrap: each row has two lines anyway.
    table.add_column("model", min_width=7)
    table.add_column("size", justify="right", no_wrap=True)
    for i, column in enumerate(grid.columns):
        first = i == 0 or grid.columns[i - 1].group != column.group
        group = _SHORT.get(column.decoding or "", column.decoding or "") if first else ""
        title = _TERMINAL_TITLES.get(column.metric, column.measure.title)
        table.add_column(Text(f"{group}\n{title}"), justify="right", no_wrap=True)
    for row in grid.rows:
        cells = [
            Text(f"{c.mean}\n{c.spread}".strip(), style="bold" if c.best else "") for c in row.cells
        ]
        style = "cyan" if row.distilled else "dim" if row.label == TEACHER else ""
        table.add_row(Text(row.name), Text(row.parameters), *cells, style=style)
    return table


def sample_panel(metrics: Mapping[str, Any], n: int = 2) -> Group:
    """A few prompts answered by teacher, starting student and distilled student.

    Args:
        metrics: the structure of ``metrics.json``.
        n: how many prompts to show, from the first.

    Returns:
        A ``rich`` renderable for ``Console.print``; empty where no sample was kept.

    Raises:
        DataError: the structure is malformed.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.text import Text

    record = read_record(metrics)
    panels = []
    for sample in record.samples[:n]:
        parts: list[Any] = []
        for label in shown_first(record, sample.responses)[:3]:
            style = "bold cyan" if label == record.distilled else "bold"
            parts.append(Text(model_name(label), style=style))
            parts.append(Padding(Text(sample.responses[label].strip() or "(empty)"), (0, 0, 0, 2)))
        title = Text(" ".join(sample.prompt.split()))
        title.truncate(200, overflow="ellipsis")
        panels.append(Panel(Group(title, Text(), *parts), title="prompt", title_align="left"))
    return Group(*panels)


def shown_first(record: Record, labels: Mapping[str, object]) -> list[str]:
    """Labels with teacher, start and distilled student first, then the others as found."""
    return in_order(list(labels), [TEACHER, START, record.distilled or ""])
