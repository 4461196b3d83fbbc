"""The tutorial: what it names is there; as a whole it runs, as the notebook that is made of it."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from markdown_pages import DOCS, ROOT, blocks

from tdistill.recipe import Recipe, read_recipe

TUTORIAL = DOCS / "tutorial.md"
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


def test_what_the_tutorial_imports_and_makes_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "studies"))
    code = "".join(blocks(TUTORIAL, "python"))
    tree = ast.parse(code)
    named = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    for node in named:
        module = importlib.import_module(str(node.module))
        assert all(hasattr(module, name.name) for name in node.names)
    world: Any = importlib.import_module("two_ways").TwoWays
    (made,) = (
        n for n in ast.walk(tree) if getattr(getattr(n, "func", None), "id", "") == "TwoWays"
    )
    asked = {keyword.arg for keyword in made.keywords}  # type: ignore[attr-defined]
    assert asked <= set(world.__dataclass_fields__)


def test_every_block_of_the_tutorial_is_a_cell_or_an_installation():
    assert len(blocks(TUTORIAL, "python")) == 4
    assert len(blocks(TUTORIAL, "bash")) == 7
    (install,) = blocks(TUTORIAL, "")
    assert "pip install" in install


@pytest.mark.slow
def test_the_notebook_of_the_tutorial_runs_and_says_what_the_tutorial_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `dev`")
    pytest.importorskip("jupytext", reason="needs the extra `dev`")
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
