"""Objectives that differ in their weight of folded values alone are trained once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from pipeline import write_world
from tdistill.errors import ModelError
from tdistill.models.language_model import load, save
from tdistill.recipe import read_recipe
from tdistill.run import Run
from tdistill.training.critic import CRITIC_FILE, load_critic
from tdistill.training.folding import fold, unfold
from tdistill.training.objectives import ValueFoldedKD
from tdistill.training.objectives.base import Folding
from tiny import tiny_lm


def test_a_student_that_cannot_be_folded_into_is_refused_before_anything_is_sampled(
    tmp_path: Path,
):
    path = write_world(
        tmp_path / "world", objectives={"value_folded_kd": {}}, distilled="value_folded_kd"
    )
    save(tiny_lm("gemma2"), tmp_path / "world" / "teacher")
    with pytest.raises(ModelError, match="found a soft cap of 2"):
        Run(read_recipe(path), tmp_path / "out", lambda line: None).train()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_other_weights_are_folded_from_the_first(kept: bool, tmp_path: Path):
    path = write_world(tmp_path / "world")
    plain = yaml.safe_load(path.read_text())
    values = {"objective": "value_folded_kd"}
    plain["objectives"] = {
        "two": values,
        "none": values | {"weight": 0.0},
        "kd": {},
        "far": values | {"discount": 0.95},
        "frequencies": values | {"keep_frequencies": True},
    }
    plain |= {"distilled": "kd", "start": None}
    plain["training"] |= {"keep_critic": kept}
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    run = Run(read_recipe(path), tmp_path / "out", lambda line: None)
    run.train()
    assert not run.failed
    models, records = tmp_path / "out" / "models", run.seeds[0].records()
    folded = {label: record.get("folded_from") for label, record in records.items()}
    again = dict.fromkeys(("none", "frequencies"), "two" if kept else None)
    assert folded == dict.fromkeys(("start", "two", "kd", "far")) | again
    heads = {x: load(models / x).model.get_output_embeddings().weight for x in plain["objectives"]}
    torch.testing.assert_close(heads["none"], heads["kd"], rtol=1e-5, atol=1e-6)
    assert (heads["two"] - heads["kd"]).abs().max() > 1e-4
    assert (heads["frequencies"] - heads["two"]).abs().max() > 1e-4
    assert (models / "none" / CRITIC_FILE).exists() == kept
    if kept:
        assert records["none"]["history"] == records["two"]["history"]
        again = load(models / "kd")
        fold(again, load_critic(models / "far", ValueFoldedKD().critic), Folding(2.0), ())
        far = again.model.get_output_embeddings().weight
        torch.testing.assert_close(heads["far"], far, rtol=1e-5, atol=1e-6)
        back = load(models / "frequencies")
        critic = load_critic(models / "frequencies", ValueFoldedKD().critic)
        unfold(back, critic, Folding(2.0, keep_frequencies=True))
        without = back.model.get_output_embeddings().weight
        torch.testing.assert_close(without, heads["kd"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_weights_that_are_not_kept_stay_until_the_last_is_folded_from_them(tmp_path: Path):
    path = write_world(tmp_path / "world")
    plain = yaml.safe_load(path.read_text())
    values = {"objective": "value_folded_kd"}
    plain["objectives"] = {"one": values, "kd": {}, "two": values | {"weight": 1.0}}
    plain |= {"distilled": "kd", "start": None, "keep_models": False}
    plain["training"] |= {"keep_critic": True}
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    run = Run(read_recipe(path), tmp_path / "out", lambda line: None)
    run.evaluate()
    assert run.seeds[0].records()["two"]["folded_from"] == "one"
    left = {folder.name for folder in (tmp_path / "out" / "models").iterdir()}
    assert left == {"untrained", "start", "kd"}
