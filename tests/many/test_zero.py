"""DeepSpeed's ZeRO-2 and ZeRO-3 over two processes: trained, resumed, saved as if all were whole.

They need ``pip install deepspeed``, a compiler and ninja: on a CPU its first start compiles a
kernel for messages between processes, some minutes once.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sharded import assert_same
from updates import Weights, trained

from launching import Launch, assert_same_students, launched
from pipeline import Finished, finish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

HERE = Path(__file__).parent
NAMES = ("kd", "sampled", "target", "critic", "value_folded_kd")


def environment(stage: int) -> dict[str, str]:
    """What `accelerate launch --use_deepspeed --zero_stage N` sets, on a CPU."""
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_MIXED_PRECISION": "no",
        "DS_ACCELERATOR": "cpu",
    }


def shared_out(stage: int, folder: Path, **wanted: Any) -> dict[str, Weights]:
    """The weights after training, by the name of the objective."""
    folder.mkdir(exist_ok=True)
    words = [HERE / "updates.py", folder, folder / "out.pt", json.dumps(wanted)]
    launched(words, **environment(stage))
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.mark.parametrize("stage", [2, 3])
def test_it_is_training_on_one_process(stage: int, tmp_path: Path) -> None:
    """The critic with its own optimiser, the averaged copy, and rows of the output layer too."""
    found = shared_out(stage, tmp_path, names=NAMES)
    for name in NAMES:
        assert_same(found[name], trained(name, tmp_path / f"alone-{name}"), name)


@pytest.mark.parametrize("stage", [2, 3])
def test_it_goes_on_from_a_checkpoint_with_a_tied_head(stage: int, tmp_path: Path) -> None:
    names, model = ("target", "critic"), {"tie_word_embeddings": True}
    assert shared_out(stage, tmp_path, names=names, model=model, stop=4) == {}
    assert (tmp_path / "target/checkpoint-3/global_step3").is_dir()
    assert not (tmp_path / "target/checkpoint-6").exists()
    found = shared_out(stage, tmp_path, names=names, model=model)
    for name in names:
        assert_same(found[name], trained(name, tmp_path / f"alone-{name}", **model), name)
        assert found[name]["lm_head.weight"].equal(found[name]["model.embed_tokens.weight"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of one process."""
    options = {"objectives": {"seqkd": {}, "kd": {}}, "distilled": "kd"}
    return finish(tmp_path_factory.mktemp("alone"), **options)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_whole_run_leaves_students_that_anybody_can_load(
    stage: int, alone: Finished, tmp_path: Path
) -> None:
    """Models that are loaded between and after the trainings are whole in every process."""
    words = ["-m", "tdistill", "run", alone.recipe, "--out", tmp_path / "out"]
    code, said = Launch(words, **environment(stage)).finish()
    assert code == 0, said
    assert_same_students(tmp_path / "out", alone)


def test_student_rows_are_refused_by_name(alone: Finished, tmp_path: Path) -> None:
    words = ["-m", "tdistill", "run", alone.recipe, "--out", tmp_path / "out"]
    words += ["--objectives.kd.student_share", "0.5"]
    code, said = Launch(words, **environment(3)).finish()
    assert code == 1
    assert "error: objectives.kd: student_share, keep_when: expected the student's whole" in said
    assert not (tmp_path / "out").exists()
