"""What the site shows that no page holds: fields, measures, and the tutorial as a notebook."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from tdistill.recipe import Recipe
from tdistill.report.measures import MEASURES
from tdistill.strict import describe
from tdistill.strict.help import FieldHelp

sys.path.insert(0, str(Path(__file__).parent))  # which mkdocs takes back once this is read
tutorial_notebook: Any = import_module("tutorial_notebook")

FIELDS = "<!-- fields of a recipe -->"
MEASURED = "<!-- measures -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    for mark, lines in ((FIELDS, fields_of_a_recipe), (MEASURED, measures)):
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(lines()))
    return markdown


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Called by mkdocs once it knows its files: the notebook becomes one that pages can link to."""
    from mkdocs.structure.files import File

    content = tutorial_notebook.as_notebook()
    files.append(File.generated(config, "tutorial.ipynb", content=content))
    return files


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
        yield row(f"`{field.path}`", field.type_text, default, field.help)


def measures() -> Iterator[str]:
    """A row of the table for each measure that says what it is."""
    for name, measure in MEASURES.items():
        if measure.meaning:
            yield row(f"{measure.title} (`{name}`)", measure.unit, measure.meaning)


def row(*cells: str) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
