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

from tdistill.core import set_scores

HIDDEN, VOCABULARY, REPETITIONS = 576, 49_152, 9
SHAPES = [(c, 21, u) for c in (16, 64, 128) for u in (21, 42, 84, 168, 336, 672) if u <= 21 * c]
"""Steps, members a step, tokens of the union."""


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


def main() -> None:
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    print("steps  union     r   forward: sparse  dense   with backward: sparse  dense")
    for steps, members, union in SHAPES:
        pool = torch.randperm(VOCABULARY)[:union]
        ids = torch.cat([pool[torch.randperm(union)[:members]] for _ in range(steps)])
        step = torch.arange(steps).repeat_interleave(members)
        hidden = torch.randn(steps, HIDDEN, requires_grad=True)
        times = []
        for form in (set_scores, dense_scores):
            with torch.no_grad():
                times.append(milliseconds(lambda f=form: f(hidden, weight, ids, step)))

            def both(f: Callable[..., Tensor] = form) -> None:
                hidden.grad = weight.grad = None
                f(hidden, weight, ids, step).sum().backward()

            times.append(milliseconds(both))
        sparse, sparse_both, dense, dense_both = times
        ratio = steps * union / len(ids)
        print(
            f"{steps:5d} {union:6d} {ratio:5.1f} {sparse:17.2f} {dense:6.2f} "
            f"{sparse_both:23.2f} {dense_both:6.2f}"
        )


if __name__ == "__main__":
    main()
