"""The README's Python runs as it stands, on a tiny teacher."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tdistill as td
from tdistill.models import language_model as lm
from tdistill.run import run_recipe
from tiny import tiny_lm

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def tiny_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README names."""
    lm.save(tiny_lm("llama", num_hidden_layers=12), tmp_path / "models" / "teacher")
    rows = [{"prompt": f"{a} b", "completion": f" {a} c"} for a in "abcdefghijklmnopqr"]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "train.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def short(recipe: td.Recipe) -> td.Recipe:
    """Only sizes differ from what a reader would run."""
    assert recipe.start is not None
    training = replace(recipe.training, steps=4, batch_size=4)
    return replace(
        recipe,
        start=replace(recipe.start, training=training),
        training=training,
        rollouts=replace(recipe.rollouts, n=1, max_new_tokens=4),
        evaluation=replace(recipe.evaluation, seeds=1, max_new_tokens=4, tuned_models=()),
    )


def python_of_the_readme() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return code


def test_the_readme_snippet_distils(tiny_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(td, "run_recipe", lambda recipe, out: run_recipe(short(recipe), out))
    names: dict[str, Any] = {}
    exec(compile(python_of_the_readme(), "README.md", "exec"), names)
    models = {score.model for score in names["result"].scores}
    assert models == {"teacher", "start", "kd", "values"}
    assert (tiny_project / "run" / "report.html").exists()
    assert (tiny_project / "run" / "student" / "config.json").exists()


def test_the_readme_is_short_and_its_python_too() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 80
    assert len([line for line in python_of_the_readme().splitlines() if line]) <= 12


def test_the_two_commands_of_the_readme_are_targets() -> None:
    commands = re.findall(r"^    make (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert commands == ["demo", "test"]
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in commands)
