"""TRL's chunked divergence from hidden states (forward KL), forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.speed.measure import timed
from benchmarks.speed.protocol import Channel, serve
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction


def main() -> None:
    channel = Channel()
    steps, hidden, vocabulary = (channel.options[k] for k in ("steps", "hidden", "vocabulary"))
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(steps, hidden, generator=generator).requires_grad_()
    teacher = torch.randn(steps, hidden, generator=generator)
    weight = (torch.randn(vocabulary, hidden, generator=generator) / hidden**0.5).requires_grad_()
    teacher_weight = torch.randn(vocabulary, hidden, generator=generator) / hidden**0.5

    def loss() -> None:
        student.grad = weight.grad = None
        both: Any = ChunkedDivergenceFunction.apply(
            student, weight, None, teacher, teacher_weight, None, 0.0, 1.0, 1.0, None, 1.0, None
        )
        both[0].mean().backward()

    channel.reply({})
    step = timed(loss)
    serve(channel, lambda _: {"seconds": step()})


if __name__ == "__main__":
    main()
