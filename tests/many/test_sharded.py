"""Weights in shards over two processes (FSDP2): trained, resumed, saved as if they were whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdp_on_cpu import ENVIRONMENT
from updates import CONFIG, Weights, trained

from launching import Launch, assert_same_students, launched
from pipeline import Finished, finish

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
NAMES = ("kd", "sampled", "target", "critic", "value_folded_kd")


def sharded(folder: Path, states: str = "SHARDED_STATE_DICT", **wanted: Any) -> dict[str, Weights]:
    """The weights after training in shards, by the name of the objective."""
    folder.mkdir(exist_ok=True)
    words = [HERE / "updates.py", folder, folder / "out.pt", json.dumps(wanted)]
    launched(words, **(ENVIRONMENT | {"FSDP_STATE_DICT_TYPE": states}))
    return torch.load(folder / "out.pt", weights_only=True)


def assert_same(found: Weights, expected: Weights, name: str) -> None:
    assert found.keys() == expected.keys(), name
    for key, weight in expected.items():
        limit = 1e-4 * weight.abs().max() if key.startswith("critic.") else 1e-6
        distance = (found[key] - weight).abs().max()
        assert distance <= limit, f"{name}: {key} differs by {distance:.1e}"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_it_is_training_on_one_process(tied: bool, tmp_path: Path) -> None:
    model = {"tie_word_embeddings": tied}
    found = sharded(tmp_path, names=NAMES, model=model)
    for name in NAMES:
        expected = trained(name, tmp_path / f"alone-{name}", **model)
        assert_same(found[name], expected, name)
        same = found[name]["lm_head.weight"].equal(found[name]["model.embed_tokens.weight"])
        assert same == (tied and name != "value_folded_kd")  # whose output layer is its own


@pytest.mark.parametrize("states", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_it_goes_on_from_a_checkpoint(states: str, tmp_path: Path) -> None:
    names = ("target", "critic")
    assert sharded(tmp_path, states, names=names, stop=4) == {}
    assert (tmp_path / "target/checkpoint-3/trainer_state.json").exists()
    kept = tmp_path / "target/checkpoint-3"
    whole = (kept / "pytorch_model_fsdp.bin").exists()
    assert whole == (states == "FULL_STATE_DICT") != (kept / "pytorch_model_fsdp_0").exists()
    found = sharded(tmp_path, states, names=names)
    for name in names:
        assert_same(found[name], trained(name, tmp_path / f"alone-{name}"), name)


def test_gradient_checkpointing_gives_the_same(tmp_path: Path) -> None:
    changes = {"gradient_checkpointing": True, "gradient_accumulation": 2}
    found = sharded(tmp_path, names=["kd"], config=changes)
    expected = trained("kd", tmp_path / "alone", replace(CONFIG, **changes))
    assert_same(found["kd"], expected, "kd")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of one process."""
    options = {"objectives": {"seqkd": {}, "kd": {}}, "distilled": "kd"}
    return finish(tmp_path_factory.mktemp("alone"), **options)


def run(alone: Finished, out: Path, *more: str) -> Launch:
    words = [HERE / "fsdp_on_cpu.py", "run", alone.recipe, "--out", out, *more]
    return Launch(words, **ENVIRONMENT)


def test_a_whole_run_leaves_students_that_anybody_can_load(alone: Finished, tmp_path: Path) -> None:
    code, said = run(alone, tmp_path / "out").finish()
    assert code == 0, said
    assert_same_students(tmp_path / "out", alone)


def test_student_rows_are_refused_by_name(alone: Finished, tmp_path: Path) -> None:
    code, said = run(alone, tmp_path / "out", "--objectives.kd.student_share", "0.5").finish()
    assert code == 1
    assert "error: objectives.kd: student_share, keep_when: expected the student's whole" in said
    assert "use plain data parallelism" in said
    assert not (tmp_path / "out").exists()
