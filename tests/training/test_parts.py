"""Batches in parts and prompts that are shared change no gradient and no metric."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from interrupting import Stop, StopAfter
from tdistill.errors import InvalidValueError
from tdistill.evidence.rows import Row
from tdistill.training.arguments import check_in_shards
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import KD
from tiny import VOCABULARY, tiny_model
from world import END, PAPER, inside_rows, live, make_trainer, student

PLAIN = replace(PAPER, shift="raw", alpha=10.0, lm_weight=0.5)
EXACT = replace(PLAIN, normaliser="vocabulary")
TEXT = tuple(tuple((7 * i + 3 * j) % VOCABULARY for j in range(6)) for i in range(5))
TIMED = ("tokens_per_second", "padding")


class Gradients(TrainerCallback):
    """Keeps the gradients of every update."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.updates.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def grouped_rows() -> list[Row]:
    """Four responses to each of four prompts, of 1 to 9 tokens, ended and cut, some off the set."""
    prompts = [row.prompt_ids for row in inside_rows(4)]
    return [replace(row, prompt_ids=prompts[i % 4]) for i, row in enumerate(inside_rows(16))]


def run(folder: Path, objective: Any = EXACT, **options: Any) -> tuple[Any, list, list[int]]:
    """A run of the tiny student, its gradients, and the tokens of each forward pass."""
    kept, sizes = Gradients(), []
    model = options.pop("model", None) or student()
    model.get_input_embeddings().register_forward_pre_hook(
        lambda module, ids: sizes.append(ids[0].numel())
    )
    callbacks = [kept, *options.pop("callbacks", [])]
    settings: dict[str, Any] = {"rows": grouped_rows(), "batch_size": 16, "max_grad_norm": 1e9}
    trainer = make_trainer(
        folder, objective, model=model, callbacks=callbacks, **{**settings, **options}
    )
    sizes.clear()  # of the checks before the run
    trainer.train(resume_from_checkpoint=options.get("resume"))
    return trainer, kept.updates, sizes


def history(trainer: Any) -> list[dict[str, float]]:
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{k: v for k, v in e.items() if k not in TIMED} for e in entries]


def padding(trainer: Any) -> float:
    return trainer.state.log_history[0]["padding"]


@pytest.mark.parametrize(
    ("objective", "accumulation", "side"),
    [(EXACT, 1, "left"), (replace(EXACT, out_of_set="drop", lm_weight=0.0), 2, "right")],
)
def test_budget_and_sharing_change_no_gradient_and_no_metric(
    objective: Any, accumulation: int, side: str, tmp_path: Path
) -> None:
    """Batches of the whole data, so that all runs have the same rows in an update."""
    options: dict[str, Any] = {"gradient_accumulation": accumulation, "padding_side": side}
    options["steps"] = 1
    options["text"] = TEXT if objective.lm_weight else ()
    plain, expected, _ = run(tmp_path, objective, **options)
    for share, budget in ((False, 24), (True, None), (True, 24), (True, 1)):
        changed = {"tokens_per_forward": budget, "share_prefix": share}
        trainer, found, _ = run(tmp_path, objective, **options, **changed)
        for one, two in zip(found, expected, strict=True):
            assert one.keys() == two.keys()
            for name, gradient in one.items():
                torch.testing.assert_close(gradient, two[name], rtol=1e-4, atol=2e-5)
        for one, two in zip(history(trainer), history(plain), strict=True):
            assert one == pytest.approx(two, rel=1e-4, abs=1e-5)


def test_the_live_teacher_reads_shared_prompts_too(tmp_path: Path) -> None:
    objective, options = KD(support="vocabulary"), {"live_teacher": live(), "steps": 1}
    _, expected, _ = run(tmp_path, objective, **options)
    _, found, _ = run(tmp_path, objective, share_prefix=True, **options)
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, expected[0][name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("share", [False, True])
def test_a_forward_pass_keeps_the_budget_and_has_less_padding(share: bool, tmp_path: Path) -> None:
    long = Row((3, 4), tuple(range(2, 42)), ended=False)
    rows = [*grouped_rows()[:-1], long]
    before, _, whole = run(tmp_path, PLAIN, rows=rows, share_prefix=share, steps=1)
    after, _, sizes = run(
        tmp_path, PLAIN, rows=rows, share_prefix=share, steps=1, tokens_per_forward=30
    )
    assert len(whole) == 1
    assert sorted(sizes)[-1] == 2 + 39  # longer than the budget, alone
    assert all(size <= 30 for size in sorted(sizes)[:-1])
    tokens = sum(sizes) * (1 - padding(after))
    assert tokens == pytest.approx(round(tokens), abs=1e-3)
    assert padding(after) < 0.1 < padding(before)
    assert share or padding(before) > 0.7  # shared rows are filled up, short ones after long ones


def test_sharing_reads_fewer_tokens(tmp_path: Path) -> None:
    _, _, apart = run(tmp_path, PLAIN, steps=1, tokens_per_forward=1)
    _, _, shared = run(tmp_path, PLAIN, steps=1, tokens_per_forward=100, share_prefix=True)
    rows = grouped_rows()
    prompts = {row.prompt_ids for row in rows}
    read = sum(len(row.response_ids) - 1 for row in rows)
    assert sum(apart) == read + sum(len(row.prompt_ids) for row in rows)
    assert sum(shared) <= 1.2 * (read + sum(len(prompt) for prompt in prompts))


@pytest.mark.slow
def test_interrupted_and_resumed_is_the_straight_run_bit_for_bit(tmp_path: Path) -> None:
    def dropping_out(seed: int) -> Any:
        return tiny_model("gpt2", seed=seed, resid_pdrop=0.2)

    options: dict[str, Any] = {
        "batch_size": 8,
        "text": TEXT,
        "steps": 7,  # two updates an epoch: the checkpoint of update 3 is in the middle of one
        "save_steps": 3,
        "gradient_accumulation": 2,
        "share_prefix": True,
        "tokens_per_forward": 10,
    }
    objective = replace(PLAIN, normaliser="sampled", negatives=16)  # draws numbers
    straight, _, sizes = run(tmp_path / "a", objective, model=dropping_out(1), **options)
    assert len(sizes) > 2 * 7 * 2
    with pytest.raises(Stop):
        run(tmp_path / "b", objective, model=dropping_out(1), callbacks=[StopAfter(4)], **options)
    torch.manual_seed(99)  # nothing of the first process is left
    trainer = make_trainer(
        tmp_path / "b", objective, model=dropping_out(5), rows=grouped_rows(), **options
    )
    trainer.args.max_grad_norm = 1e9
    trainer.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    weights = trainer.model.state_dict()
    assert all(weights[n].equal(w) for n, w in straight.model.state_dict().items())
    assert history(trainer) == history(straight)


def test_a_student_that_cannot_share_is_trained_on_separate_rows(tmp_path: Path) -> None:
    model = tiny_model("bloom", n_layer=1, n_head=2)
    options: dict[str, Any] = {"rows": grouped_rows(), "steps": 1, "share_prefix": True}
    with pytest.warns(UserWarning, match=r"BloomForCausalLM: .* separate rows"):
        trainer = make_trainer(tmp_path, PLAIN, model=model, **options)
    assert not trainer.data_collator.share_prefix
    assert trainer.data_collator.pad_id == END
    order = list(trainer.get_train_dataloader().batch_sampler)
    other = make_trainer(tmp_path, PLAIN, **options)
    found = list(other.get_train_dataloader().batch_sampler)
    assert found == order  # the data of all students alike


def test_shards_refuse_what_needs_whole_weights_or_free_passes() -> None:
    wide = TrainConfig(tokens_per_forward=8)
    with pytest.raises(InvalidValueError, match=r"tokens_per_forward: .* use plain data paral"):
        check_in_shards(KD(), wide)
    for objective in (KD(student_share=0.5), KD(keep_share=0.5, keep_when="update")):
        with pytest.raises(InvalidValueError, match=r"^mine: student_share, keep_when: .* whole"):
            check_in_shards(objective, TrainConfig(), "mine")
    check_in_shards(KD(keep_share=0.5), TrainConfig())


def test_a_budget_of_no_tokens_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="tokens_per_forward"):
        TrainConfig(tokens_per_forward=0)
