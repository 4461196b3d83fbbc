"""The documentation's site: its pages are those of its nav, its reference has every public name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from markdown_pages import DOCS, ROOT, blocks

import tdistill
from tdistill import core
from tdistill.recipe import Recipe, recipe_dict
from tdistill.strict import structure

GUIDES = ("own_data", "lora", "evaluation", "evidence", "large_teachers", "using")


def named(nav: Any) -> Iterator[str]:
    """The pages of a nav, in order."""
    if isinstance(nav, str):
        yield nav
    else:
        for inner in nav.values() if isinstance(nav, dict) else nav:
            yield from named(inner)


def test_every_page_is_in_the_nav_once_and_every_entry_is_a_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(named(site["nav"])) == sorted(pages)
    assert site["strict"] is True


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    shown = {line.rpartition(".")[2] for line in re.findall(r"^::: (.+)$", page, re.MULTILINE)}
    assert set(tdistill.__all__) - {"objectives"} <= shown
    formulas = (DOCS / "reference" / "core.md").read_text(encoding="utf-8")
    modules = {getattr(core, name).__module__ for name in core.__all__}
    assert modules == set(re.findall(r"^::: (.+)$", formulas, re.MULTILINE))


@pytest.mark.parametrize("guide", GUIDES)
def test_what_a_guide_writes_in_yaml_is_part_of_a_recipe(guide: str) -> None:
    found = blocks(DOCS / f"{guide}.md", "yaml")
    assert found
    for block in found:
        part = yaml.safe_load(block)
        recipe = structure(Recipe, {"teacher": {"path": "t"}, "student": {"layers": 2}} | part)
        plain = recipe_dict(recipe)
        assert all(set(part[section]) <= set(plain[section]) for section in part)
