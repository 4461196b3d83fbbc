"""How often a device would be waited for: upper bounds a micro-batch and a decoded token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.waiting import Waits

from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.teacher.rollouts import Unit, sample_unit
from tdistill.training.objectives import KD, BellmanDistill
from tiny import tiny_lm, tiny_model
from world import STUDENT, make_trainer

LIMITS = {"a micro-batch": 4, "an update beside them": 7, "a token": 5}
"""A look at numbers lets a device run dry: these may fall, never rise (once 47, 40 and 18)."""


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdistill.models.head.row_products.waits_for", lambda tensor: True)


def counted_training(folder: Path, objective: Any) -> tuple[list[Waits], Waits]:
    """Of each micro-batch of three updates, and of all that is done beside them."""
    model = tiny_model("llama", **STUDENT)
    model.set_attn_implementation("sdpa")
    trainer = make_trainer(folder, objective, model=model, steps=3, gradient_accumulation=2)
    inner, parts, rest = trainer.training_step, [], Waits()
    drawn = trainer.get_batch_samples

    def step(*args: Any, **kwargs: Any) -> Any:
        parts.append(Waits())
        with rest.pause(), parts[-1].counting():
            return inner(*args, **kwargs)

    def on_the_host(*args: Any, **kwargs: Any) -> Any:
        with rest.pause():
            return drawn(*args, **kwargs)

    trainer.training_step, trainer.get_batch_samples = step, on_the_host
    with rest.counting():
        trainer.train()
    return parts, rest


@pytest.mark.parametrize("objective", [BellmanDistill(), BellmanDistill(normaliser="set"), KD()])
def test_a_micro_batch_and_an_update(objective: Any, tmp_path: Path):
    parts, rest = counted_training(tmp_path, objective)
    assert len(parts) == 6
    most = max(parts, key=lambda part: part.total)
    assert most.total <= LIMITS["a micro-batch"], most.places
    assert rest.total <= 3 * LIMITS["an update beside them"], rest.places


def decoded(tokens: int) -> Waits:
    """Of a unit of rollouts whose responses do not end before ``tokens``."""
    lm = tiny_lm("llama", scale=0.01)  # nearly uniform: no row ends early
    lm.model.set_attn_implementation("sdpa")
    config = RolloutConfig(
        n=2, max_new_tokens=tokens, batch_size=4, capture=CaptureConfig(max_set_size=8)
    )
    unit = Unit(((3, 4, 5), (3, 4, 5), (7,), (7,)), (0, 1, 0, 1), 0, 5)
    sample_unit(lm, unit, config)  # trials are made once
    waits = Waits()
    with waits.counting():
        sample_unit(lm, unit, config)
    return waits


def test_a_decoded_token():
    more = decoded(12).places - decoded(4).places
    assert 0 < more.total() <= 8 * LIMITS["a token"], more


def test_what_waits_is_counted():
    """The counter itself: each of these waits on CUDA, and the last three do not."""
    marks, offsets = torch.tensor([True, False, True]), torch.tensor([0, 2, 3])
    numbers = torch.tensor([1.0, 2.0, 3.0])
    waiting: list[Callable[[], object]] = [
        lambda: numbers[marks],
        lambda: numbers.index_put((marks,), numbers[:1]),
        lambda: marks.nonzero(),
        lambda: bool(marks.all()),
        lambda: numbers.tolist(),
        lambda: numbers[0].item(),
        lambda: numbers.cpu(),
        lambda: numbers.long().bincount(minlength=8),
        lambda: numbers.unique(),
        lambda: torch.repeat_interleave(numbers[:2], offsets.diff()),
        lambda: torch.tensor([1, 2], device="cpu"),
    ]
    free: list[Callable[[], object]] = [
        lambda: numbers.masked_fill(marks, 0.0),
        lambda: numbers[offsets[:2]],
        lambda: torch.repeat_interleave(numbers[:2], offsets.diff(), output_size=3),
    ]
    for work in (*waiting, *free):
        waits = Waits()
        with waits.counting():
            work()
        assert waits.total == (work in waiting), waits.places
