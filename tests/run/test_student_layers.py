"""The student's layers in a run: chosen once, on its rollouts, and on record."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipeline import Finished, read_json
from tdistill.models.language_model import load
from tdistill.recipe import read_recipe
from tdistill.run import Run
from tdistill.run.keys import stage_keys


def test_the_choice_is_on_record(finished: Finished):
    found = finished.metrics["layers"]
    assert found == read_json(finished.folder / "stages/student.json")["layers"]
    assert found["choose"] == "greedy"
    assert sorted(found["kept"] + found["removed"]) == [0, 1, 2]
    assert (len(found["influence"]), len(found["forward_kl"])) == (3, 1)
    assert found["measured_steps"] == finished.metrics["counts"]["rollout_steps"]
    page = (finished.folder / "report.html").read_text()
    assert "Layers of the student" in page
    assert f"{found['forward_kl'][0]:.4g}" in page
    teacher = load(finished.recipe.parent / "teacher").model
    student = load(finished.folder / "models/untrained").model
    for new, old in enumerate(found["kept"]):
        theirs = teacher.get_submodule(f"model.layers.{old}")
        for name, weight in student.get_submodule(f"model.layers.{new}").named_parameters():
            assert torch.equal(weight, theirs.get_parameter(name))


def test_it_is_made_once_and_again_by_another_rule(finished: Finished, tmp_path: Path):
    shutil.copytree(finished.folder, tmp_path / "run")
    for words, said in (
        ([], ["[student] reused"]),
        (["--student.choose", "even"], ["[student]", "  layers 0, 2 of the teacher (even)"]),
    ):
        lines: list[str] = []
        ground = Run(read_recipe(finished.recipe, words), tmp_path / "run", lines.append).groundwork
        ground.make_student()
        assert lines[: len(said)] == said
    assert ground.records()["student"]["layers"] == {"choose": "even", "kept": [0, 2]}


@pytest.mark.parametrize(
    "words",
    [["--student.choose", "even"], ["--student.layers", "null", "--student.path", "s"]],
)
def test_without_measuring_it_does_not_depend_on_rollouts(finished: Finished, words: list[str]):
    recipes = (read_recipe(finished.recipe, [*words, "--rollouts.seed", seed]) for seed in "01")
    old, new = map(stage_keys, recipes)
    assert new["student"] == old["student"]
    assert new["start"] != old["start"]
