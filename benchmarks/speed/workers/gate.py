"""Holds a ``transformers.Trainer`` between updates: the loop that is timed is its own.

Every update is on all rows: each method has the same tokens in each of its steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.measure import peak_bytes, resident_bytes
from benchmarks.speed.protocol import Channel
from transformers import TrainerCallback

ARGUMENTS: dict[str, Any] = {
    "max_steps": 1_000_000,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "seed": 0,
}
"""Arguments that every trainer gets."""


class Gate(TrainerCallback):
    """Lets one update pass a request, and answers with its seconds.

    The clock runs from the request to the end of the update: reading and collating the batch,
    forward, loss, backward, clipping and optimiser are all within.

    Args:
        channel: whence requests come.
        bare: bytes in use when only the models were loaded.
        extra: further fields of an answer, asked for after each update.
    """

    def __init__(
        self, channel: Channel, bare: int, extra: Callable[[], dict[str, Any]] = dict
    ) -> None:
        self.channel, self.bare, self.extra = channel, bare, extra

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.channel.reply({"bare_bytes": self.bare})
        self._wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = _now() - self.start
        over = used_at_most() - self.bare
        self.channel.reply({"seconds": seconds, "over_bare_bytes": over, **self.extra()})
        self._wait(control)

    def _wait(self, control: Any) -> None:
        if self.channel.receive() is None:
            control.should_training_stop = True
        self.start = _now()


def settle(*models: torch.nn.Module) -> int:
    """Give models their own memory (not a mapped file's), and the bytes in use then."""
    for model in models:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return resident_bytes()


def used_at_most() -> int:
    """Peak memory: of the device where there is one, else of the process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()


def load_rows(path: str) -> list[dict[str, Any]]:
    """Rows as written by ``materials``: prompt_ids, response_ids, prompt."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
