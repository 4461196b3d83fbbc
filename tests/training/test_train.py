"""A training run as a whole: resume, adapters, history, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interrupting import assert_goes_on, assert_same_weights
from tdistill.errors import InvalidValueError
from tdistill.models.language_model import LanguageModel, load, save
from tdistill.training import train as train_module
from tdistill.training.arguments import training_arguments
from tdistill.training.config import LoraConfig, TrainConfig
from tdistill.training.objectives import KD, SFT, BellmanDistill, Objective, SeqKD
from tdistill.training.train import newest_checkpoint, train_student
from tiny import VOCABULARY, tiny_lm
from world import inside_rows, live

CONFIG = TrainConfig(
    steps=6, batch_size=8, learning_rate=1e-2, warmup_steps=1, save_steps=2, chunk_size=4
)


def start() -> LanguageModel:
    return tiny_lm("llama", seed=2, num_hidden_layers=1)


def train(
    folder: Path, objective: Objective | None = None, config: TrainConfig = CONFIG, **options: Any
) -> tuple[LanguageModel, list[dict[str, float]]]:
    settings = {"vocabulary_size": VOCABULARY, "source": live()} | options
    student = settings.pop("student", None) or start()
    rows = settings.pop("rows", inside_rows(16))
    objective = objective or BellmanDistill()
    return train_student(student, objective, rows, config, checkpoints=folder, **settings)


def weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in lm.model.state_dict().items()}


@pytest.mark.parametrize("objective", [SeqKD(), KD(), BellmanDistill()], ids=lambda o: o.name)
def test_training_lowers_the_loss_and_tells_of_every_update(objective: Objective, tmp_path: Path):
    before = start()
    trained, history = train(tmp_path, objective, replace(CONFIG, steps=12))
    assert [entry["step"] for entry in history] == list(range(1, 13))
    assert {"loss", "leak", "set_kl", "out_of_set", "grad_norm", "implied_reward"} <= set(
        history[0]
    )
    assert sum(h["loss"] for h in history[-2:]) < sum(h["loss"] for h in history[:2])
    assert not trained.model.training
    assert any(not torch.equal(weights(trained)[n], w) for n, w in weights(before).items())
    assert json.loads(json.dumps(history, allow_nan=False)) == history


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_resumed_run_is_the_straight_run(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert_goes_on(train, tmp_path, monkeypatch, stop=step)


def test_a_run_killed_after_its_last_update_does_not_take_another(tmp_path: Path):
    """The Trainer, resumed from a checkpoint of the last update, would."""
    config = replace(CONFIG, steps=5, scheduler="constant")  # in the middle of an epoch
    expected, history = train(tmp_path, config=config)
    found, again = train(tmp_path, config=config)
    assert [entry["step"] for entry in again] == [entry["step"] for entry in history]
    assert_same_weights(found, expected)


def test_another_objective_is_not_the_same_training(tmp_path: Path):
    one, _ = train(tmp_path / "a", KD())
    other, _ = train(tmp_path / "b", BellmanDistill())
    same, _ = train(tmp_path / "c", KD())
    assert_same_weights(one, same)
    with pytest.raises(AssertionError):
        assert_same_weights(one, other)


def checkpoint(folder: Path, step: int, state: str | None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x")
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_newest_whole_checkpoint_is_taken_and_cut_ones_are_removed(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "none") is None
    older = checkpoint(tmp_path, 5, '{"global_step": 5}')
    whole = checkpoint(tmp_path, 10, '{"global_step": 10}')
    cut = checkpoint(tmp_path, 15, '{"global_st')
    absent = checkpoint(tmp_path, 100, None)
    assert newest_checkpoint(tmp_path) == str(whole)
    assert older.exists()
    assert not cut.exists()
    assert not absent.exists()
    assert newest_checkpoint(tmp_path) == str(whole)


def test_with_only_a_cut_checkpoint_training_starts_anew(tmp_path: Path):
    expected, _ = train(tmp_path / "a")
    checkpoint(tmp_path / "b", 2, None)
    found, history = train(tmp_path / "b")
    assert_same_weights(found, expected)
    assert len(history) == 6


# peft asks transformers in its older words.
of_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
LORA = replace(CONFIG, lora=LoraConfig(rank=4, alpha=8.0))


@of_peft
def test_adapters_are_merged_into_a_normal_model(tmp_path: Path):
    trained, _ = train(tmp_path / "checkpoints", config=LORA)
    before = weights(start())
    assert weights(trained).keys() == before.keys()
    assert type(trained.model) is type(start().model)
    changed = {n for n, w in weights(trained).items() if not torch.equal(w, before[n])}
    assert changed
    assert all("proj" in name for name in changed), "adapters sit on the linear layers only"
    for name in changed:
        difference = weights(trained)[name] - before[name]
        assert int(torch.linalg.matrix_rank(difference, rtol=1e-4)) <= 4
    save(trained, tmp_path / "student")
    assert_same_weights(load(tmp_path / "student"), trained)


@of_peft
def test_adapters_resume_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(folder: Path) -> tuple[LanguageModel, list[dict[str, float]]]:
        return train(folder, config=LORA)

    assert_goes_on(run, tmp_path, monkeypatch, stop=5)


def test_adapters_without_peft_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InvalidValueError, match=r"pip install 'tdistill\[peft\]'"):
        train(tmp_path, config=LORA)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_frozen_embeddings_stay_and_everything_else_trains(
    tied: bool, checkpointing: bool, tmp_path: Path
):
    student = tiny_lm("llama", seed=2, num_hidden_layers=1, tie_word_embeddings=tied)
    before = weights(student)
    config = replace(CONFIG, freeze_embeddings=True, gradient_checkpointing=checkpointing)
    trained, _ = train(tmp_path, config=config, student=student)
    frozen = {"model.embed_tokens.weight"} | ({"lm_head.weight"} if tied else set())
    for name, weight in weights(trained).items():
        assert torch.equal(weight, before[name]) == (name in frozen), name
    assert all(weight.requires_grad for weight in trained.model.parameters())


def test_the_fused_update_is_the_plain_one_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fused, _ = train(tmp_path / "fused")

    def plainly(*args: Any) -> Any:
        arguments = training_arguments(*args)
        assert arguments.optim == "adamw_torch_fused"
        return replace(arguments, optim="adamw_torch", optim_args="foreach=False")

    monkeypatch.setattr(train_module, "training_arguments", plainly)
    plain, _ = train(tmp_path / "plain")
    before = weights(start())
    for name, weight in weights(plain).items():
        moved = (weight - before[name]).norm()
        assert moved > 0, name
        assert (weights(fused)[name] - weight).norm() <= 1e-3 * moved, name


def test_the_live_teacher_is_used_where_it_is_asked_for(tmp_path: Path):
    cached, _ = train(tmp_path / "a", KD())
    exact, _ = train(tmp_path / "b", KD(support="vocabulary"), live_teacher=live())
    with pytest.raises(AssertionError):
        assert_same_weights(cached, exact)


def test_text_is_trained_on_beside_the_rows(tmp_path: Path):
    text = tuple(tuple(range(2 + i, 8 + i)) for i in range(4))
    without, _ = train(tmp_path / "a")
    trained, history = train(tmp_path / "b", text=text)
    assert all(entry["text_loss"] > 0 for entry in history)
    with pytest.raises(AssertionError):
        assert_same_weights(trained, without)


@pytest.mark.parametrize(
    ("objective", "options", "text"),
    [
        (SFT(), {"rows": []}, r"sft: expected responses to train on \(references\), found none"),
        (BellmanDistill(), {"source": None}, "bellman_distill: needs the teacher's top-p sets"),
        (KD(support="vocabulary"), {}, "kd: needs the teacher in memory"),
    ],
)
def test_missing_evidence_is_refused_before_training(
    objective: Objective, options: dict[str, Any], text: str, tmp_path: Path
):
    with pytest.raises(InvalidValueError, match=text):
        train(tmp_path / "checkpoints", objective, **options)
    assert not (tmp_path / "checkpoints").exists()


def test_the_cleared_folder_of_a_finished_run_leaves_no_trace(tmp_path: Path):
    first, _ = train(tmp_path)
    shutil.rmtree(tmp_path)
    second, _ = train(tmp_path)
    assert_same_weights(first, second)
