"""The tutorial: what it names is there; as a whole it runs, as the notebook that is made of it."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from markdown_pages import DOCS, ROOT, blocks

import tdistill
from tdistill.recipe import Recipe, read_recipe
from tdistill.report.result import Result

TUTORIAL = DOCS / "tutorial.md"
PYTHON = "".join(blocks(TUTORIAL, "python"))
STUDIES = ("two_ways.py", "from_scratch.py")
HEREDOC = "cat > runs/tutorial/recipe.yaml <<'END'\n"
MINUTES = 15  # on two cores that are busy


def recipe_of_the_tutorial(folder: Path) -> Recipe:
    (block,) = (text for text in blocks(TUTORIAL, "bash") if text.startswith(HEREDOC))
    path = folder / "recipe.yaml"
    path.write_text(block.removeprefix(HEREDOC).partition("END\n")[0])
    return read_recipe(path)


def test_the_recipe_of_the_tutorial_is_one(tmp_path: Path):
    recipe = recipe_of_the_tutorial(tmp_path)
    assert recipe.distilled == "value_tilted_kd"
    assert recipe.evaluation.verify == "exact"
    assert recipe.data.train == str(tmp_path / "train.jsonl")


def test_what_the_tutorial_makes_is_there():
    """The world is read, not imported: that would bring the trainer."""
    made = re.search(r"from two_ways import (\w+).*= \1\((.+?)\)\n", PYTHON, re.DOTALL)
    assert made is not None
    trees = [ast.parse((ROOT / "studies" / name).read_text()) for name in STUDIES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    fields = {ast.unparse(node.target) for node in nodes if isinstance(node, ast.AnnAssign)}
    asked = re.findall(r"(\w+)=", made[2])
    assert made[1] in classes
    assert len(asked) == 5 and set(asked) <= fields


def test_what_the_tutorial_asks_of_the_library_is_there():
    assert compile(PYTHON, "tutorial.md", "exec")
    for name in re.findall(r"\btd\.(\w+)", PYTHON):
        assert name in tdistill.__all__
    assert callable(Result.estimate) and "result.estimate(" in PYTHON


def test_every_block_of_the_tutorial_is_a_cell_or_an_installation():
    assert len(blocks(TUTORIAL, "python")) == 4
    assert len(blocks(TUTORIAL, "bash")) == 7
    (install,) = blocks(TUTORIAL, "")
    assert "pip install" in install


@pytest.mark.slow
def test_the_notebook_of_the_tutorial_runs_and_says_what_the_tutorial_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `docs`")
    pytest.importorskip("jupytext", reason="needs the extra `docs`")
    nbformat: Any = importlib.import_module("nbformat")
    monkeypatch.syspath_prepend(str(DOCS))
    made: Any = importlib.import_module("tutorial_notebook")
    notebook = nbformat.reads(made.as_notebook(), as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 11
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), *sys.path]))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=60 * MINUTES, resources=resources).execute()
    run = tmp_path / "runs/tutorial/run"
    scores = json.loads((run / "metrics.json").read_text())["scores"]
    right = {
        s["model"]: s["metrics"]["exact_match"]["mean"] for s in scores if s["decoding"] == "greedy"
    }
    assert right["teacher"] > 0.9
    assert right["kd"] < 0.4 and right["mine"] < 0.4
    assert right["value_tilted_kd"] > 0.9
    assert (run / "report.html").stat().st_size > 0
    said = "".join(o.get("text", "") for cell in cells for o in cell.outputs)
    assert "value_tilted_kd" in said and "nothing was sent" in said.lower()
