"""A self-contained page of the results, and the figures for the docs."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed import plots

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.6rem;
         border-bottom: 1px solid #ddd; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.met { color: #11683b; } .missed { color: #a02518; }
small { color: #555; } svg { max-width: 100%; height: auto; } figure { margin: 1.5rem 0; }
"""


def write_page(found: Mapping[str, Any], page: Path, figures: Path) -> None:
    """Write the page with its figures inside, and the figures as PNG files beside the docs.

    Args:
        found: the results.
        page: file to write.
        figures: folder for ``speed_*.png``.
    """
    drawn = {name: figure for name, figure in plots.draw(found).items() if figure is not None}
    figures.mkdir(parents=True, exist_ok=True)
    inside = []
    for name, figure in drawn.items():
        figure.savefig(figures / f"speed_{name}.png", dpi=150)
        inside.append(f"<figure>{_svg(figure)}</figure>")
    page.write_text(_page(found, inside), encoding="utf-8")
    plots.close(drawn.values())


def number(value: float | None) -> str:
    """A value with three figures, or a dash.

    Example:
        >>> number(3.14159), number(1234567.0), number(None)
        ('3.14', '1,234,567', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _page(found: Mapping[str, Any], figures: list[str]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    met = sum(entry["met"] for entry in found["entries"])
    heading = f"{met} of {len(found['entries'])} bars met"
    rows = "\n".join(_row(entry) for entry in found["entries"])
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>tdistill: speed</title><style>{STYLE}</style>
<h1>Speed</h1>
<p>{heading}. {html.escape(found["date"])}, commit {html.escape(found["commit"])},
{html.escape(found["form"])} form. {html.escape(machine)}.</p>
<table><tr><th>what<th>found<th>quartiles<th>bar<th></tr>
{rows}
</table>
{"".join(figures)}
{"".join(_details(name, table) for name, table in found["details"].items())}
</html>
"""


def _row(entry: Mapping[str, Any]) -> str:
    words = f"{html.escape(entry['words'])}<br><small>{html.escape(entry['run'])}</small>"
    if entry.get("reason"):
        words += f"<br><small><b>Missed because</b> {html.escape(entry['reason'])}</small>"
    spread = " to ".join(number(v) for v in entry["spread"] or ())
    sign = {">=": "at least", "<=": "at most"}[entry["comparison"]]
    verdict = "met" if entry["met"] else "missed"
    return (
        f"<tr><td>{words}<td class=number>{number(entry['value'])} {html.escape(entry['unit'])}"
        f"<td class=number>{spread}<td class=number>{sign} {number(entry['bar'])}"
        f"<td class={verdict}>{verdict}</tr>"
    )


def _details(name: str, tables: Mapping[str, Any]) -> str:
    parts = [f"<h2>{html.escape(name.replace('_', ' '))}</h2>"]
    for title, content in tables.items():
        rows = content if isinstance(content, list) else [content]
        rows = [row for row in rows if isinstance(row, dict)]
        if rows:
            parts += [f"<h3>{html.escape(title.replace('_', ' '))}</h3>", _table(rows)]
    return "\n".join(parts)


def _table(rows: list[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(c.replace('_', ' '))}" for c in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(row.get(c)))}" for c in columns) for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        low, high = value["spread"]
        return f"{number(value['value'])} ({number(low)} to {number(high)})"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return number(value)


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue().split("?>", 1)[-1].split("]>", 1)[-1].split('.dtd">', 1)[-1]
