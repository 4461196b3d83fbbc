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

    Columns in which no model has a number are left out.
    """
    decodings = in_order([s.decoding for s in record.scores], list(DECODINGS))
    columns = [
        Column(metric, decoding, decoding_name(decoding))
        for decoding in decodings
        for metric in ("rouge_l", "teacher_nll")
    ]
    columns += [Column(metric, None, "Imitation") for metric in ("forward_kl", "leak")]
    length = "sample" if "sample" in decodings else (decodings or ["sample"])[0]
    columns.append(Column("response_tokens", length, f"Length, {_short(length)}"))
    columns = [c for c in columns if any(_get(record, m, c) is not None for m in record.models)]
    rows = [
        Row(
            label=model,
            name=model_name(model),
            parameters=count(record.parameter_count(model)),
            cells=[_cell(record, model, c) for c in columns],
            distilled=model == record.distilled,
        )
        for model in record.models
    ]
    return Grid(columns, rows)


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


def _short(decoding: str) -> str:
    return {"sample": "T = 1"}.get(decoding, decoding_name(decoding).lower())


def _get(record: Record, model: str, column: Column) -> Estimate | None:
    return record.estimate(model, column.metric, column.decoding)


def _cell(record: Record, model: str, column: Column) -> Cell:
    ours = _get(record, model, column)
    cell = written(ours, column.measure, best=_is_best(record, model, column))
    score = record.score(model, column.decoding) if column.decoding == "tuned" else None
    if score is None or score.temperature is None or ours is None:
        return cell
    return Cell(cell.mean, cell.spread, f"T = {score.temperature:g}: {cell.hint}", cell.best)


def _is_best(record: Record, model: str, column: Column) -> bool:
    """Best student mean of the column, or an interval that overlaps with the best one's."""
    better = column.measure.better
    students = [m for m in record.models if m != TEACHER]
    known = {m: e for m in students if (e := _get(record, m, column)) is not None and e.comparable}
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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for i, column in enumerate(grid.columns):
        first = i == 0 or grid.columns[i - 1].group != column.group
        group = _TERMINAL_GROUPS.get(column.decoding or "", column.decoding or "") if first else ""
        title = _TERMINAL_TITLES.get(column.metric, column.measure.title)
        table.add_column(Text(f"{group}\n{title}"), justify="right")
    for row in grid.rows:
        cells = [
            Text(f"{c.mean} {c.spread}".strip(), style="bold" if c.best else "") for c in row.cells
        ]
        style = "cyan" if row.distilled else "dim" if row.label == TEACHER else ""
        table.add_row(Text(row.name), Text(row.parameters), *cells, style=style)
    return table


_TERMINAL_GROUPS = {"greedy": "greedy", "sample": "T = 1", "nucleus": "nucleus", "tuned": "tuned"}
_TERMINAL_TITLES = {
    "rouge_l": "Rouge",
    "teacher_nll": "NLL",
    "forward_kl": "KL",
    "leak": "leak",
    "response_tokens": "tokens",
}


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
