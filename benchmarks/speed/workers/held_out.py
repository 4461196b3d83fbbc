"""Held-out forward KL of a model that is being trained, asked for between updates, off the clock.

Torch and transformers alone: the peers' environment has nothing else.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.protocol import Channel
from benchmarks.speed.workers.gate import Gate


class QualityGate(Gate):
    """A gate that also answers ``{"do": "kl"}`` with the divergence from the teacher.

    Args:
        channel: whence requests come.
        bare: bytes in use when only the models were loaded.
        model: that is trained.
        held_out: file of :func:`write_held_out`.
    """

    def __init__(self, channel: Channel, bare: int, model: Any, held_out: str) -> None:
        super().__init__(channel, bare)
        self.model, self.held_out = model, torch.load(held_out, weights_only=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = time.process_time() - self.processor
        self.extra = lambda: {"processor_seconds": seconds}
        super().on_step_end(args, state, control, **kwargs)

    def _wait(self, control: Any) -> None:
        while (request := self.channel.receive()) is not None and request["do"] == "kl":
            self.channel.reply({"kl": forward_kl(self.model, self.held_out)})
        if request is None:
            control.should_training_stop = True
        self.processor = time.process_time()
        self.start = time.perf_counter()


@torch.no_grad()
def write_held_out(path: Path, teacher: Any, rows: list[dict[str, Any]]) -> None:
    """The teacher's distribution at the steps of rows, in half precision.

    Args:
        path: of the file.
        teacher: the network.
        rows: with ``prompt_ids`` and ``response_ids``.
    """
    kept = []
    for row in rows:
        prompt, response = list(row["prompt_ids"]), list(row["response_ids"])
        ids = torch.tensor([prompt + response[:-1]], device=teacher.device)
        logits = teacher(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
        log_probs = logits.float().log_softmax(-1).half().cpu()
        kept.append({"ids": ids.cpu(), "log_probs": log_probs})
    torch.save(kept, path)


@torch.no_grad()
def forward_kl(model: Any, held_out: list[dict[str, Any]]) -> float:
    """Mean KL(teacher || model) a step, nats, over the vocabulary."""
    was, total, steps = model.training, 0.0, 0
    model.eval()
    for row in held_out:
        teacher = row["log_probs"].to(model.device).float().log_softmax(-1)
        ids = row["ids"].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -len(teacher) :]
        student = logits[:, : teacher.shape[1]].float().log_softmax(-1)
        total += float((teacher.exp() * (teacher - student)).sum())
        steps += len(teacher)
    model.train(was)
    return total / steps
