"""Scores of chosen tokens and their gradients: sparse products against a dense one.

    python benchmarks/crossover.py

The dense way multiplies c steps with the union of their U tokens and gathers the M members; its
work is r = c U / M times theirs. Times are medians in milliseconds, of the present threads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tdistill.models.head import set_scores

HIDDEN, VOCABULARY, REPETITIONS = 576, 49_152, 9
SHAPES = [(c, 21, u) for c in (16, 64, 128) for u in (21, 42, 84, 168, 336, 672) if u <= 21 * c]
"""Steps, members a step, tokens of the union."""


Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def dense_scores(hidden: Tensor, weight: Tensor, ids: Tensor, step: Tensor) -> Tensor:
    """One product with the union of the tokens, then the members of each step."""
    union, place = ids.unique(return_inverse=True)
    rows = torch.nn.functional.embedding(union, weight, sparse=True)
    return (hidden @ rows.T)[step, place]


def milliseconds(work: Callable[[], object]) -> float:
    """Median of a few runs, after one that is not counted."""
    work()
    found = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        work()
        found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found)


def times_of(form: Form, hidden: Tensor, weight: Tensor, ids: Tensor, step: Tensor) -> list[float]:
    """Forward alone, and with both gradients."""

    def forward() -> Tensor:
        return form(hidden, weight, ids, step)

    def both() -> None:
        hidden.grad = weight.grad = None
        forward().sum().backward()

    with torch.no_grad():
        alone = milliseconds(forward)
    return [alone, milliseconds(both)]


def main() -> None:
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    print("steps  union     r   forward: sparse  dense   with backward: sparse  dense")
    for steps, members, union in SHAPES:
        pool = torch.randperm(VOCABULARY)[:union]
        ids = torch.cat([pool[torch.randperm(union)[:members]] for _ in range(steps)])
        step = torch.arange(steps).repeat_interleave(members)
        hidden = torch.randn(steps, HIDDEN, requires_grad=True)
        sparse = times_of(set_scores, hidden, weight, ids, step)
        dense = times_of(dense_scores, hidden, weight, ids, step)
        print(
            f"{steps:5d} {union:6d} {steps * union / len(ids):5.1f} {sparse[0]:17.2f} "
            f"{dense[0]:6.2f} {sparse[1]:23.2f} {dense[1]:6.2f}"
        )


if __name__ == "__main__":
    main()
