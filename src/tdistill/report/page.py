"""One self-contained HTML page from a result: its own script at most, no address."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tdistill.errors import without_controls
from tdistill.files import write_atomically
from tdistill.report import findings
from tdistill.report.choice import choices, numbers
from tdistill.report.curves import learning_curves, loss_panels
from tdistill.report.downloads import downloads
from tdistill.report.facts import Fact, facts, settings, setup
from tdistill.report.figures import family_colours, interval_figures
from tdistill.report.headline import headline
from tdistill.report.measures import MEASURES, in_order, measure, model_name, number
from tdistill.report.places import places
from tdistill.report.result import Inspection, Result
from tdistill.report.sets import bound_figure, histogram_figure
from tdistill.report.svg import css_variable
from tdistill.report.sweeps import (
    VARIABLES,
    Level,
    level_columns,
    matched_cell,
    matched_rows,
    sweep_curves,
    sweep_table,
)
from tdistill.report.tables import (
    Cell,
    Column,
    TableRow,
    difference_cell,
    full_table,
    score_cell,
    score_rows,
    shown_first,
    table_columns,
    table_rows,
)
from tdistill.report.tokens import reward_scale, trace_view
from tdistill.report.values import value_view

if TYPE_CHECKING:
    from jinja2 import Environment

_C = TypeVar("_C")
_OPEN_SAMPLES = 3
_BOUNDS = (  # name, head and decimals of each column
    ("set_top_p", "p", 2),
    ("mean_size", "Mean size", 1),
    ("median_size", "Median size", 0),
    ("bound", "Bound (3.3)", 2),
    ("bound_as_cached", "if cuts were ends", 2),
    ("bound_stationary", "(3.3), endless", 2),
    ("kappa", "\N{GREEK SMALL LETTER KAPPA}(p)", 2),
)


@dataclass(frozen=True)
class Table:
    """Rows of cells, family by family; the family of teacher and start has no name."""

    title: str
    columns: Sequence[Any]
    families: list[tuple[str, list[tuple[TableRow, list[Cell]]]]]


def write_report(result: Result, path: Path) -> Path:
    """Write the report of a run.

    Args:
        result: of the run.
        path: the HTML file to write; its folder is made if needed.

    Returns:
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render(result))
    return path


def render(result: Result) -> str:
    """The whole page as text."""
    return without_controls(
        templates()
        .get_template("page.html.j2")
        .render(
            headline=headline(result),
            summary=findings.summary(result),
            caveat=findings.caveat(result),
            failed=result.failed,
            warnings=result.warnings,
            created=result.created.replace("T", " ")[:16],
            version=result.versions.get("tdistill", ""),
            ours=result.distilled,
            base=model_name(result.baseline),
            families=[(f, css_variable(c)) for f, c in family_colours(result).items()],
            intervals=interval_figures(result),
            scores=_scores(result),
            differences=[
                _differences(result, less)
                for less in dict.fromkeys([result.distilled, result.baseline])
            ],
            full=full_table(result),
            sweep=_sweep(result) if result.sweep else None,
            meanings=_meanings(result),
            absent=[Fact(measure(name).title, why) for name, why in result.absent.items()],
            choices=choices(result),
            downloads=downloads(result),
            curves=learning_curves(result),
            losses=loss_panels(result),
            places=places(result),
            sets=_sets(result.cache),
            samples=_samples(result),
            open_samples=_OPEN_SAMPLES,
            traces=_traces(result),
            values=[value_view(trace) for trace in result.value_traces if trace.steps],
            settings=settings(result),
            setup=setup(result),
            measure=measure,
        )
    )


def templates() -> Environment:
    """Where the page's templates come from; everything put into them is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    folder = resources.files("tdistill.report")
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda drawn: Markup(drawn.svg)
    environment.globals["style"] = Markup((folder / "style.css").read_text(encoding="utf-8"))
    script = (folder / "page.js").read_text(encoding="utf-8")
    environment.globals["script"] = Markup(script)
    environment.globals["script_hash"] = b64encode(sha256(script.encode()).digest()).decode()
    return environment


def _table(
    title: str,
    rows: list[TableRow],
    columns: Sequence[_C],
    cell: Callable[[TableRow, _C], Cell],
) -> Table:
    families: dict[str, list[tuple[TableRow, list[Cell]]]] = {}
    for row in rows:
        families.setdefault(row.family, []).append((row, [cell(row, column) for column in columns]))
    return Table(title, columns, list(families.items()))


def _scores(result: Result) -> Table:
    def cell(row: TableRow, column: Column) -> Cell:
        return score_cell(result, row, column)

    return _table("Scores", score_rows(result), table_columns(result), cell)


def _differences(result: Result, less: str) -> Table:
    """Every model less one; how long that took to train is no difference on the same prompts."""

    def cell(row: TableRow, column: Column) -> Cell:
        return difference_cell(result, row, less, column)

    rows = [row for row in table_rows(result) if row.label != less]
    columns = [column for column in table_columns(result) if column.metric != "seconds"]
    return _table(f"Differences to {model_name(less)}", rows, columns, cell)


def _sweep(result: Result) -> dict[str, Any]:
    """Figures by variable, the table of matched differences of each, and all numbers."""

    def cell(row: TableRow, column: Level) -> Cell:
        return matched_cell(result, row, column)

    rows = matched_rows(result)
    tables = [
        _table(f"At equal {measure(x).title.lower()}", rows, columns, cell)
        for x in VARIABLES
        if (columns := level_columns(result, x))
    ]
    temperatures = dict.fromkeys(p.temperature for points in result.sweep.values() for p in points)
    return {
        "temperatures": ", ".join(f"{temperature:g}" for temperature in temperatures),
        "figures": [(title, sweep_curves(result, x)) for x, title in VARIABLES.items()],
        "tables": tables,
        "comparisons": max((row.comparisons for row in result.matched), default=0),
        "full": sweep_table(result),
    }


def _meanings(result: Result) -> list[Fact]:
    """Definitions of the metrics that occur on the page."""
    used = {name for score in [*result.scores, *result.imitation] for name in score.metrics}
    used |= {n for points in result.sweep.values() for point in points for n in point.metrics}
    used |= {name for curve in result.curves.values() for name in curve.mean}
    known = [measure(name) for name in in_order(used - {"loss"}, list(MEASURES))]
    return [Fact(m.title, m.meaning) for m in known if m.meaning]


def _sets(cache: Inspection) -> dict[str, Any]:
    drawn = [figure for figure in (histogram_figure(cache), bound_figure(cache)) if figure]
    plain = {k: v for k, v in cache.items() if k not in ("set_size_histogram", "bounds")}
    bounds: list[Any] = sorted(cache["bounds"], key=lambda bound: bound["set_top_p"])
    rows = [[number(bound[name], digits) for name, _, digits in _BOUNDS] for bound in bounds]
    heads = [head for _, head, _ in _BOUNDS]
    return {"figures": drawn, "facts": facts(plain, grouped=True), "heads": heads, "bounds": rows}


def _samples(result: Result) -> list[dict[str, Any]]:
    number = numbers(result)
    return [
        {
            "prompt": sample.prompt,
            "responses": [
                (model_name(x), sample.responses[x], x == result.distilled, f"m{number.get(x)}")
                for x in shown_first(result, sample.responses)
            ],
        }
        for sample in result.samples
    ]


def _traces(result: Result) -> dict[str, Any] | None:
    if not result.reward_traces:
        return None
    scale = reward_scale(result.reward_traces)
    views = [trace_view(trace, scale) for trace in result.reward_traces]
    return {"scale": number(scale, 2), "minus": number(-scale, 2), "views": views}
