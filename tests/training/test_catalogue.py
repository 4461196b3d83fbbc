from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from shutil import copytree
from typing import Any, get_args

import pytest

import tdistill
from tdistill import cli
from tdistill.training.objectives import AnyObjective
from tdistill.training.objectives.catalogue import catalogue, with_table

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
CLASSES: tuple[Any, ...] = get_args(AnyObjective)


def test_the_page_holds_the_present_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run `make docs`"
    assert all(f"| `{cls.name}` |" in page for cls in CLASSES)


def test_every_objective_says_what_it_is() -> None:
    rows = catalogue()
    assert [row["name"] for row in rows] == [cls.name for cls in CLASSES]
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        for key in ("family", "minimises", "optimum", "bias", "data", "cost", "reference"):
            assert row[key].strip(), (row["name"], key)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)
def test_an_objective_that_needs_student_rows_says_so_in_its_card(cls: Any) -> None:
    if cls.needs_student_rows:
        assert "student" in cls.card.data
    assert "set_top_p" in {field.name for field in fields(cls)}


def test_the_command_prints_them_for_people_and_for_programs(
    capsys: pytest.CaptureFixture,
) -> None:
    assert cli.main(["objectives", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == catalogue()
    assert cli.main(["objectives"]) == 0
    said = capsys.readouterr().out
    for row in catalogue():
        assert f"{row['name']}  ({row['family']})" in said
        assert row["minimises"] in said


NEW = """
from dataclasses import dataclass
from typing import ClassVar

from tdistill.training.objectives.base import Card, Objective

__all__ = ["Brandnew"]


@dataclass(frozen=True)
class Brandnew(Objective):
    name: ClassVar[str] = "brandnew"
    card: ClassVar[Card] = Card("cloning", *("something",) * 6)
    warmth: float = 1.0
"""
IMPORT = "from tdistill.training.objectives.brandnew import *"
USE = """
import sys
import tdistill as td
from tdistill import strict
from tdistill.training.objectives.catalogue import catalogue

assert catalogue()[0]["name"] == "brandnew" and catalogue()[0]["fields"] == ["warmth"]
settings = {"teacher": {"path": "t"}, "student": {"layers": 2}, "distilled": "brandnew"}
settings["objectives"] = {"brandnew": {"warmth": 2.0}}
recipe = strict.structure(td.Recipe, settings)
assert recipe.objectives == {"brandnew": td.objectives.Brandnew(warmth=2)}
assert "torch" not in sys.modules
"""


def test_its_own_file_and_one_list_are_all_that_adding_an_objective_touches(tmp_path: Path) -> None:
    package = tmp_path / "tdistill"
    copytree(Path(tdistill.__file__).parent, package)
    folder = package / "training" / "objectives"
    (folder / "brandnew.py").write_text(NEW, encoding="utf-8")
    union = (folder / "__init__.py").read_text(encoding="utf-8")
    listed = union.replace("AnyObjective = (\n", f"{IMPORT}\nAnyObjective = (\n    Brandnew |\n")
    assert len(listed.splitlines()) == len(union.splitlines()) + 2
    (folder / "__init__.py").write_text(listed, encoding="utf-8")
    command = [sys.executable, "-c", USE]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})


def test_they_are_public_names() -> None:
    assert all(getattr(tdistill.objectives, cls.__name__) is cls for cls in CLASSES)
