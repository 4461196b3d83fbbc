"""The precision of a run: the teacher's as it is loaded, the student's as it is served."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import Finished, digest, read_json, write_world
from tdistill.errors import InvalidValueError
from tdistill.models.language_model import LanguageModel, load, save
from tdistill.recipe import read_recipe
from tdistill.run import Run
from tdistill.run.groundwork import Groundwork
from tdistill.run.keys import stage_keys
from tiny import tiny_lm


def dtypes(folder: Path) -> set[torch.dtype]:
    return {weight.dtype for weight in load_file(folder / "model.safetensors").values()}


def test_the_student_is_written_in_the_precision_that_it_is_served_in(
    finished: Finished, tmp_path: Path
):
    out = shutil.copytree(finished.folder, tmp_path / "out")
    recipe = read_recipe(finished.recipe, ["--student.served_dtype", "bfloat16"])
    changed = {
        name
        for name, key in stage_keys(recipe).items()
        if key != stage_keys(read_recipe(finished.recipe))[name]
    }
    assert changed == {"publish"}
    Run(recipe, out, lambda line: None).train()
    assert dtypes(out / "student") == {torch.bfloat16}
    assert read_json(out / "student/config.json")["dtype"] == "bfloat16"
    assert digest(out / "models") == digest(finished.folder / "models")
    lm, whole = load(out / "student"), load(out / "models/bellman_distill")
    pairs = zip(lm.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs.bfloat16().float()) for ours, theirs in pairs)
    assert lm.end_ids == whole.end_ids


def test_by_default_it_is_that_of_the_checkpoint_it_comes_from(tmp_path: Path):
    recipe = read_recipe(write_world(tmp_path / "world"))
    assert Groundwork(recipe, tmp_path / "out", str).served_dtype == "float32"
    lm = tiny_lm("llama", scale=3.0)
    half = LanguageModel(lm.model.to(torch.bfloat16), lm.tokenizer, "half")
    save(half, tmp_path / "world/teacher")
    ground = Groundwork(recipe, tmp_path / "out", str)
    assert ground.served_dtype == "bfloat16"
    assert {weight.dtype for weight in ground.load_teacher().model.parameters()} == {torch.float32}


def test_a_teacher_in_half_precision_makes_a_student_in_float32(tmp_path: Path):
    recipe = read_recipe(
        write_world(tmp_path / "world"),
        ["--teacher.weights.dtype", "bfloat16", "--student.choose", "even"],
    )
    ground = Groundwork(recipe, tmp_path / "out", lambda line: None)
    assert {w.dtype for w in ground.load_teacher().model.parameters()} == {torch.bfloat16}
    assert dtypes(ground.make_student()) == {torch.float32}


def test_layers_of_a_quantised_teacher_make_no_student(tmp_path: Path):
    recipe = write_world(tmp_path / "world")
    with pytest.raises(InvalidValueError, match=r"quantise: expected null where student.layers"):
        read_recipe(recipe, ["--teacher.weights.quantise", "4bit"])
