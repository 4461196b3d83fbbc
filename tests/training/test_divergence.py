"""Training that diverges stops at once, saves nothing of it, and is warned of before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tdistill.errors import DivergenceError
from tdistill.training.config import TrainConfig
from tdistill.training.divergence import refuse_non_finite_weights, signs_of_failure
from tdistill.training.objectives import KD, SFT, BellmanDistill, Objective, SeqKD, StepLoss, Views
from tdistill.training.train import newest_checkpoint, train_student
from tiny import VOCABULARY, tiny_lm
from world import inside_rows, live

CONFIG = TrainConfig(
    steps=12, batch_size=8, learning_rate=1e-3, warmup_steps=1, save_steps=2, chunk_size=4
)


@dataclass(frozen=True)
class Poisoned(SeqKD):
    """Gives a loss that is ``poison`` from update ``at`` on."""

    poison: float = math.nan
    at: int = 6

    def loss(self, views: Views, batch: Any) -> StepLoss:
        found = super().loss(views, batch)
        return replace(found, loss=found.loss * (self.poison if views.update >= self.at else 1.0))


def train(folder: Path, objective: Objective, **options: Any) -> Any:
    config = replace(CONFIG, **options)
    student = tiny_lm("llama", seed=2, num_hidden_layers=1)
    settings: dict[str, Any] = {"vocabulary_size": VOCABULARY, "source": live()}
    return student, lambda: train_student(
        student, objective, inside_rows(16), config, checkpoints=folder, **settings
    )


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_first_loss_that_is_no_number_ends_training(
    poison: float, accumulation: int, tmp_path: Path
):
    student, run = train(tmp_path, Poisoned(poison=poison), gradient_accumulation=accumulation)
    with pytest.raises(DivergenceError) as caught:
        run()
    text = str(caught.value)
    assert "at update 7" in text  # the seventh has number 6
    assert f"a loss of {poison:g}" in text
    assert "training.learning_rate" in text
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-6'}" in text
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    refuse_non_finite_weights("the student", 6, student.model)  # nothing of it reached the weights


def test_a_gradient_that_is_no_number_ends_training_though_the_loss_is_one(tmp_path: Path):
    student, run = train(tmp_path, SeqKD())
    first = next(iter(student.model.parameters()))
    first.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergenceError, match=r"gradient norm of (nan|inf)") as caught:
        run()
    assert "at update 1" in str(caught.value)
    assert "last good checkpoint" not in str(caught.value)


@pytest.mark.parametrize("objective", [SFT(), KD(), BellmanDistill()], ids=lambda o: o.name)
def test_a_rate_of_1e30_is_an_error_and_not_a_loss_of_0(objective: Objective, tmp_path: Path):
    _, run = train(tmp_path, objective, learning_rate=1e30)
    with pytest.raises(DivergenceError):
        run()


def test_weights_that_overflow_in_the_last_update_are_not_returned(tmp_path: Path):
    options = {"learning_rate": 1e38, "weight_decay": 1e3, "warmup_steps": 0}
    _, run = train(tmp_path, SeqKD(), steps=1, scheduler="constant", **options)
    with pytest.raises(DivergenceError, match="finite weights after update 1"):
        run()


def test_the_weight_that_is_no_number_is_named():
    model = nn.Linear(2, 2)
    refuse_non_finite_weights("kd", 3, model)
    with torch.no_grad():
        model.bias[1] = math.nan
    with pytest.raises(DivergenceError, match="after update 3, found NaN or infinite ones in bias"):
        refuse_non_finite_weights("kd", 3, model)


def logged(**columns: tuple[float, float]) -> Iterator[dict[str, float]]:
    for i in range(20):
        yield {name: a + (b - a) * i / 19 for name, (a, b) in columns.items()}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"leak": (0.1, 0.95)}, ["leak: 86%"]),
        ({"leak": (0.9, 0.95)}, []),  # it began so
        ({"set_kl": (0.4, 2.4)}, ["set_kl: the student went away"]),
        ({"set_kl": (2.4, 0.4)}, []),
        ({"value": (-10.0, -900.0)}, ["value: soft values drift: from -104 to -806"]),
        ({"value": (-10.0, 900.0)}, ["value: soft values drift"]),
        ({"loss": (1.0, 9.0)}, ["loss: the loss rose"]),
        ({"loss": (-20.0, -1.0)}, []),  # the values of a difference may shrink
        ({"loss": (3.0, 1.0), "leak": (0.0, 0.1), "set_kl": (1.0, 0.1), "value": (5, 9)}, []),
    ],
)
def test_signs_of_failure_are_seen_in_what_is_logged(columns: Any, expected: list[str]):
    found = signs_of_failure(list(logged(**columns)))
    assert len(found) == len(expected)
    for text, start in zip(found, expected, strict=True):
        assert text.startswith(start)


def test_a_sign_is_told_once_while_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, run = train(tmp_path, Poisoned(poison=1e4, at=6), steps=20, learning_rate=1e-6)
    run()
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(said) == 1
    assert said[0].startswith("  warning: seqkd: loss: the loss rose from")
