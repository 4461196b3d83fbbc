"""Run with TRITON_INTERPRET=1: the kernels against the readable reference, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tdistill.models.head import GATHERED, RowProducts, set_scores
from tdistill.models.head.triton_rows import TRITON

T, D, V = 7, 200, 30  # D is more than one tile wide and no multiple of it


def read(products: RowProducts, dtype: torch.dtype, sizes: list[int]) -> list[Tensor]:
    """Value and both gradients on fixed inputs; some sets are wider than a tile."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    step = torch.arange(T).repeat_interleave(torch.tensor(sizes))
    ids = torch.randint(V // 2, (len(step),), generator=generator) * 2
    scores = set_scores(hidden, weight, ids, step, products=products)
    slope = torch.linspace(-1, 2, len(scores), dtype=scores.dtype)
    found = torch.autograd.grad(scores, (hidden, weight), slope)
    return [scores.detach(), *(g.to_dense() for g in found)]


def main() -> None:
    for sizes in ([0, 1, 20, 3, 40, 0, 2], [0] * T, [0] * (T - 1) + [1]):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            found, expected = read(TRITON, dtype, sizes), read(GATHERED, dtype, sizes)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)
            again = read(TRITON, dtype, sizes)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    print("equal")


if __name__ == "__main__":
    main()
