"""DistillKit's compressor on the teacher's rows: bytes, mass, error, speed, and its cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.speed.protocol import Channel, serve
from benchmarks.speed.workers.gate import load_rows
from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor
from transformers import AutoModelForCausalLM

ROWS = 4  # of one forward pass


@torch.no_grad()
def log_probs(teacher: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """The teacher's distribution at every position of rows of one length, [B, L, V]."""
    ids = torch.tensor([row["prompt_ids"] + row["response_ids"] for row in rows])
    return teacher(input_ids=ids).logits.float().log_softmax(-1)


def compress(teacher: Any, rows: list[dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    """Compress every row under one setting; measures at the steps of the responses."""
    compressor = LogprobCompressor(config=DistributionQuantizationConfig(**request["setting"]))
    packed: dict[str, list[np.ndarray]] = {}
    size, steps, seconds, mass, worst, total = 0, 0, 0.0, 0.0, 0.0, 0.0
    for first in range(0, len(rows), ROWS):
        group = rows[first : first + ROWS]
        # Its polynomial of degree 4 is off by nats when it is fitted in float32.
        truth = log_probs(teacher, group).double()
        fields = compressor.compress(truth)
        for name, tensor in fields.items():
            packed.setdefault(name, []).append(tensor.numpy())
        start = time.perf_counter()
        ids, values = compressor.decompress_to_sparse(fields)
        seconds += time.perf_counter() - start
        for i, row in enumerate(group):
            at = slice(len(row["prompt_ids"]) - 1, truth.shape[1] - 1)
            exact = truth[i, at].gather(-1, ids[i, at])
            error = (values[i, at] - exact).abs()
            steps += len(exact)
            size += sum(t[i, at].numpy().nbytes for t in fields.values())
            mass += float(exact.exp().sum())
            worst, total = max(worst, float(error.max())), total + float(error.mean(-1).sum())
    if request.get("out"):
        np.savez(Path(request["out"]), **{n: np.concatenate(p) for n, p in packed.items()})
    positions = sum(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows)
    return {
        "bytes_per_step": size / steps,
        "mass": mass / steps,
        "worst_error": worst,
        "mean_error": total / steps,
        "positions_per_second": positions / seconds,
    }


def main() -> None:
    channel = Channel()
    teacher = AutoModelForCausalLM.from_pretrained(channel.options["teacher"], dtype=torch.float32)
    rows = load_rows(channel.options["rows"])
    channel.reply({})
    serve(channel, lambda request: compress(teacher, rows, request))


if __name__ == "__main__":
    main()
