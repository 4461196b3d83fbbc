"""Training that is interrupted and goes on, for the tests of what must survive it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tdistill.models.language_model import LanguageModel
from tdistill.training.trainer import DistillTrainer

History = list[dict[str, float]]


class Stop(Exception):
    """Stands for a kill."""


class StopAfter(TrainerCallback):
    """Stops after an update that no checkpoint holds."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.update:
            raise Stop


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt after the log of an update, before its checkpoint."""
    original: Any = DistillTrainer.log

    def log(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        if self.state.global_step == step:
            raise Stop

    monkeypatch.setattr(DistillTrainer, "log", log)


def untimed(history: History) -> History:
    """What was logged, less what a clock says."""
    return [{k: v for k, v in entry.items() if k != "tokens_per_second"} for entry in history]


def assert_same_weights(found: LanguageModel, expected: LanguageModel) -> None:
    """Bit for bit."""
    own, other = found.model.state_dict(), expected.model.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)


def assert_goes_on(
    train: Callable[[Path], tuple[LanguageModel, History]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stop: int,
) -> History:
    """A run stopped after an update and started again is the run that was not; returns its log."""
    expected, history = train(folder / "straight")
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        with pytest.raises(Stop):
            train(folder / "resumed")
    found, again = train(folder / "resumed")
    assert_same_weights(found, expected)
    assert untimed(again) == untimed(history)
    return again
