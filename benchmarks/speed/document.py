"""The table of bars in docs/performance.md, written from the results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.page import number

BEGIN, END = "<!-- bars: written by make bench -->", "<!-- end of bars -->"


def table(found: Mapping[str, Any]) -> str:
    """A Markdown table: what was measured, value with spread, bar, met."""
    lines = ["| what | measured | spread | bar | met |", "|---|---|---|---|---|"]
    for entry in found["entries"]:
        value, spread = number(entry["value"]), "-"
        if entry["spread"] is not None:
            spread = " to ".join(number(end) for end in entry["spread"])
        bar = f"{entry['comparison']} {number(entry['bar'])} {entry['unit']}"
        lines.append(
            f"| {entry['words']} | {value} | {spread} | {bar} | {'yes' if entry['met'] else 'no'} |"
        )
    missed = [e for e in found["entries"] if "reason" in e]
    reasons = [f"- Missed: {e['words']}. {e['reason']}" for e in missed]
    return "\n".join([*lines, "", *reasons])


def put_in(text: str, found: Mapping[str, Any]) -> str:
    """A document with its table replaced.

    Raises:
        ValueError: for a document without the two markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected the lines {BEGIN} and {END} in the document, found none")
    return f"{before}{begin}\n{table(found)}\n{end}{after}"


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Replace the table of a file."""
    text = path.read_text(encoding="utf-8")
    path.write_text(put_in(text, found), encoding="utf-8")
