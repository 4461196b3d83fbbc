"""The tables of a result, once: the terminal and the page draw the same rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdistill.errors import printable
from tdistill.evaluation.config import HIGHER, LOWER
from tdistill.evaluation.places import is_of_place
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
    verdict,
)
from tdistill.report.result import SAMPLED, START, TEACHER, TUNED, Estimate, Result

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_PLACES = {"greedy": "greedy", "sample": "T = 1", "nucleus": "nucleus"}
_SHORT = {
    "forward_kl": "KL",
    "kl_with_rest": "KL+rest",
    "set_kl": "set KL",
    "rouge_l": "Rouge",
    "exact_match": "exact",
    "verified": "right",
    "teacher_nll": "NLL",
    "response_tokens": "tokens",
}
VERDICTS = ("exact_match", "verified")  # the metrics of verifiers
_SECONDS = Measure("Training", "s", 0, 0, "Seconds to train one model, mean over seeds.")
_MOST_TASKS, _WIDEST = 2, 8  # on a terminal: tasks, and characters of their heads
_MODELS = ""  # the family of teacher and start
_FAILED = "failed"  # that of objectives that left no student
_COLOURS = {"better": "green", "worse": "red"}


@dataclass(frozen=True)
class Column:
    """A metric in a decoding, on teacher responses (None), or the training seconds."""

    metric: str
    decoding: str | None = None

    @property
    def measure(self) -> Measure:
        """How the column's numbers are named and written."""
        return _SECONDS if self.metric == "seconds" else measure(self.metric)

    @property
    def place(self) -> str:
        """Where it is measured, in a word."""
        return "" if self.decoding is None else _PLACES.get(self.decoding, self.decoding)

    @property
    def title(self) -> str:
        """Metric and place."""
        return f"{self.measure.title}, {self.place}" if self.place else self.measure.title


@dataclass(frozen=True)
class TableRow:
    """A model, or a model at its tuned temperature."""

    label: str
    family: str
    name: str
    tuned: bool = False

    def decoding(self, column: Column) -> str | None:
        """Where the row's number of a column is found."""
        if not self.tuned:
            return column.decoding
        return TUNED if column.decoding == SAMPLED else "not measured"


@dataclass(frozen=True)
class Cell:
    """One written number; ``verdict`` is that of a difference, ``best`` that of a column.

    ``value`` is the number itself: what rows are sorted by.
    """

    mean: str
    spread: str = ""
    hint: str = ""
    verdict: str = ""
    best: bool = False
    value: float | None = None


def families(result: Result) -> dict[str, list[str]]:
    """Objectives by family, as they come."""
    found: dict[str, list[str]] = {}
    for label, about in result.objectives.items():
        found.setdefault(about.family, []).append(label)
    return found


def table_rows(result: Result) -> list[TableRow]:
    """Teacher, start, then the objectives family by family; a tuned temperature has its own row."""
    labels = [(x, _MODELS) for x in (TEACHER, START)]
    labels += [(x, family) for family, members in families(result).items() for x in members]
    rows = []
    for label, family in labels:
        rows.append(TableRow(label, family, model_name(label)))
        if temperatures := result.temperatures.get(label):
            at = ", ".join(f"{t:g}" for t in sorted(set(temperatures)))
            rows.append(TableRow(label, family, f"{model_name(label)}, tuned T = {at}", tuned=True))
    return rows


def score_rows(result: Result) -> list[TableRow]:
    """The rows of :func:`table_rows`, then the objectives that failed, which have no number."""
    failed = dict.fromkeys(who.rpartition(", seed ")[0] for who in result.failed)
    return table_rows(result) + [TableRow(x, _FAILED, model_name(x)) for x in failed]


def table_columns(result: Result) -> list[Column]:
    """Divergences, Rouge-L, verdicts and teacher likelihood by decoding, length, training time.

    Columns in which no model has a number are left out.
    """
    decodings = in_order(result.decodings, list(DECODINGS))
    wanted = [Column(name) for name in ("forward_kl", "kl_with_rest", "leak", "set_kl")]
    metrics = ("rouge_l", *VERDICTS, "teacher_nll")
    wanted += [Column(name, d) for name in metrics for d in decodings]
    wanted += [Column(name) for name in task_metrics(result)]
    wanted += [Column("response_tokens", SAMPLED if SAMPLED in decodings else decodings[0])]
    known = [
        c for c in wanted if any(result.estimate(x, c.metric, c.decoding) for x in result.models)
    ]
    return [*known, Column("seconds")]


def task_metrics(result: Result) -> list[str]:
    """The metrics of tasks, in their order."""
    found = (name for row in result.imitation for name in row.metrics)
    return [name for name in dict.fromkeys(found) if name.startswith((HIGHER, LOWER))]


def divergence_metric(result: Result) -> str:
    """What tells how far a student is from its teacher: the forward KL where it is known."""
    known = any(result.estimate(x, "forward_kl", None) for x in result.models)
    return "forward_kl" if known or not result.absent else "kl_with_rest"


def quality_metric(result: Result) -> str:
    """What responses are judged by: the verifier's verdict where there is one, else Rouge-L."""
    measured = {name for score in result.scores for name in score.metrics}
    return next((name for name in VERDICTS if name in measured), "rouge_l")


def score_cell(result: Result, row: TableRow, column: Column) -> Cell:
    """Mean and half-width of the interval, or the training seconds, or that training failed."""
    if row.family == _FAILED:
        why = "; ".join(
            why for who, why in result.failed.items() if who.startswith(f"{row.label},")
        )
        return Cell("failed", hint=why) if column.metric == "seconds" else Cell("")
    if column.metric == "seconds":
        seconds = None if row.tuned else result.seconds.train.get(row.label)
        return Cell("" if seconds is None else number(seconds, 0), value=seconds)
    own = result.estimate(row.label, column.metric, row.decoding(column))
    return written(own, column.measure, best=not row.tuned and _is_best(result, row.label, column))


def written(estimate: Estimate | None, what: Measure, *, best: bool = False) -> Cell:
    """An estimate as text: mean, half-width of the interval; interval and seeds as a hint."""
    if estimate is None:
        return Cell("", hint="not measured")
    half, more = estimate.half_width, what.digits + 1
    spread = "" if half is None else f"\N{PLUS-MINUS SIGN}{number(half, what.digits)}"
    hint = f"{number(estimate.mean, more)} {interval(estimate, more)} {what.unit}".strip()
    mean, hint = number(estimate.mean, what.digits), hint + _by_seed(estimate, more)
    return Cell(mean, spread, hint, best=best, value=estimate.mean)


def _by_seed(estimate: Estimate, digits: int) -> str:
    if len(estimate.seeds) < 2:
        return ""
    return "; seeds " + ", ".join(number(mean, digits) for mean in estimate.seeds)


def _is_best(result: Result, label: str, column: Column) -> bool:
    """Whether no student has a better mean; the teacher is none."""
    better = column.measure.better
    students = [x for x in result.models if x != TEACHER]
    found = {x: result.estimate(x, column.metric, column.decoding) for x in students}
    means = {x: better * estimate.mean for x, estimate in found.items() if estimate}
    return better != 0 and len(means) > 1 and means.get(label) == max(means.values())


def difference_cell(result: Result, row: TableRow, less: str, column: Column) -> Cell:
    """A model less another, with the interval of the paired difference; empty for the other."""
    what, decoding = column.measure, row.decoding(column)
    own = result.difference(row.label, less, column.metric, decoding)
    return Cell("", hint="not measured") if own is None else written_difference(own, what)


def written_difference(own: Estimate, what: Measure) -> Cell:
    """A difference as text, with its interval and what it says of the model."""
    sign = "+" if own.mean > 0 else ""
    bounds = "" if own.low is None else interval(own, what.digits)
    hint = f"{number(own.mean, what.digits + 1)} {interval(own, what.digits + 1)}"
    hint += _by_seed(own, what.digits + 1)
    mean = sign + number(own.mean, what.digits)
    return Cell(mean, bounds, hint, verdict(own, what), value=own.mean)


def full_table(result: Result) -> tuple[list[str], list[tuple[str, str, list[Cell]]]]:
    """Every metric of every model and decoding, but for those of single places in a response.

    Returns:
        The metric names, and (model, decoding with seeds, cells) for each row.
    """
    found = [name for score in result.scores for name in score.metrics if not is_of_place(name)]
    names, rows = in_order(found, []), []
    for score in result.scores:
        details = [decoding_name(score.decoding)]
        if score.decoding == TUNED and score.temperature is not None:
            details.append(f"T = {score.temperature:g}")
        details.append(f"{score.seeds} seed{'' if score.seeds == 1 else 's'}")
        cells = [written(score.metrics.get(name), measure(name)) for name in names]
        rows.append((model_name(score.model), ", ".join(details), cells))
    return names, rows


def score_table(result: Result) -> Table:
    """The score table for a terminal, at most 80 characters wide.

    Returns:
        A ``rich`` table: models as rows, family by family; each cell is the mean over the
        half-width of its interval. Bold: best mean of the students; coloured: the interval of the
        paired difference to the baseline is without 0.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns, tasks = _terminal_columns(result), task_metrics(result)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
        caption=_caption(result),
        caption_justify="left",
    )
    table.add_column("model", min_width=7, overflow="fold")  # only a name may wrap
    for column in columns:
        name = _SHORT.get(column.metric, column.measure.title.lower())
        name = name[:_WIDEST] if column.metric in tasks else name
        place = {"nucleus": "nucl."}.get(column.place, column.place[:6])
        title = "train\ns" if column.metric == "seconds" else f"{place}\n{name}"
        table.add_column(Text(title), justify="right", no_wrap=True)
    family = _MODELS
    for row in score_rows(result):
        if row.family != family:
            family = row.family
            table.add_row(Text(family.replace("-", " "), style="dim italic"))  # a narrow column
        style = {result.distilled: "cyan", TEACHER: "dim"}.get(row.label, "")
        cells = [_terminal_cell(result, row, column) for column in columns]
        table.add_row(Text(row.name), *cells, style=style)
    return table


def _terminal_columns(result: Result) -> list[Column]:
    """What 80 characters hold: one divergence, one metric of quality, three decodings at most."""
    left_out = {"set_kl", "rouge_l", *VERDICTS} - {quality_metric(result)}
    columns = [c for c in table_columns(result) if c.metric not in left_out]
    decodings = in_order(result.decodings, list(DECODINGS))[:3]
    left_out |= set(task_metrics(result)[_MOST_TASKS:])
    columns = [c for c in columns if c.metric not in left_out]
    return [c for c in columns if c.decoding is None or c.decoding in decodings]


def _terminal_cell(result: Result, row: TableRow, column: Column) -> Any:
    from rich.text import Text

    cell = score_cell(result, row, column)
    judged = difference_cell(result, row, result.baseline, column).verdict
    style = f"{'bold ' if cell.best else ''}{_COLOURS.get(judged, '')}".strip()
    return Text(f"{cell.mean}\n{cell.spread}".strip(), style=style)


def _caption(result: Result) -> str:
    sizes = f"teacher {count(result.parameters[TEACHER])} parameters, "
    sizes += f"student {count(result.parameters[result.distilled])}"
    marks = "bold: best student"
    if len(result.objectives) > 1:
        base = model_name(result.baseline)
        marks += f"; green, red: better, worse than {base} (paired interval)"
    failed = "".join(printable(f"\n{who} failed: {why}") for who, why in result.failed.items())
    return f"{sizes}; mean \N{PLUS-MINUS SIGN}half-width\n{marks}{failed}"


def sample_panel(result: Result, n: int = 2) -> Group:
    """A few prompts answered by teacher, starting student and distilled student.

    Args:
        result: of a run.
        n: how many prompts to show, from the first.

    Returns:
        A ``rich`` renderable for ``Console.print``; empty where no sample was kept.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.text import Text

    panels = []
    for sample in result.samples[:n]:
        parts: list[Any] = []
        for label in shown_first(result, sample.responses)[:3]:
            style = "bold cyan" if label == result.distilled else "bold"
            parts.append(Text(model_name(label), style=style))
            response = printable(sample.responses[label].strip()) or "(empty)"
            parts.append(Padding(Text(response), (0, 0, 0, 2)))
        title = Text(printable(" ".join(sample.prompt.split())))
        title.truncate(200, overflow="ellipsis")
        panels.append(Panel(Group(title, Text(), *parts), title="prompt", title_align="left"))
    return Group(*panels)


def shown_first(result: Result, labels: Mapping[str, object]) -> list[str]:
    """Labels with teacher, start and distilled student first, then the others as found."""
    return in_order(labels, [TEACHER, START, result.distilled])
