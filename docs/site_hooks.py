"""What the site shows that no page holds: the fields of a recipe, from the classes themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from tdistill.recipe import Recipe
from tdistill.strict import describe
from tdistill.strict.help import FieldHelp

MARK = "<!-- fields of a recipe -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return markdown.replace(MARK, "\n".join(fields_of_a_recipe())) if MARK in markdown else markdown


def fields_of_a_recipe() -> Iterator[str]:
    """Markdown: a heading and a table for each section, as `tdistill run --help` lists them."""
    sections = groupby(describe(Recipe), lambda field: field.path.split(".")[0])
    for name, fields in sections:
        yield from ("", f"## {name}", "", "| field | type | default | |", "|---|---|---|---|")
        yield from rows_of(fields)


def rows_of(fields: Iterable[FieldHelp]) -> Iterator[str]:
    """A row of the table for each field."""
    for field in fields:
        default = f"`{field.default_text}`" if field.default_text else ""
        cells = (f"`{field.path}`", field.type_text, default, field.help)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
