"""Run with TRITON_INTERPRET=1: the kernels against the readable reference, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tdistill.models.head import GATHERED, RowProducts, set_scores
from tdistill.models.head.triton_rows import Tile, triton_products

T, V = 7, 30
SOME, NONE, ONE = [0, 1, 20, 3, 19, 0, 2], [0] * T, [0] * (T - 1) + [1]
"""Members of each step; more than a tile, none at all, none but at the last step."""
CASES = [
    (torch.float32, 200, SOME, Tile()),  # D is more than one tile wide and no multiple of it
    (torch.float64, 5, SOME, Tile()),  # below a tile
    (torch.bfloat16, 1, SOME, Tile()),
    (torch.float16, 128, SOME, Tile()),  # one tile
    (torch.bfloat16, 200, SOME, Tile(4, 256, 8)),
    (torch.bfloat16, 40, NONE, Tile()),
    (torch.bfloat16, 40, ONE, Tile()),
]


def read(products: RowProducts, dtype: torch.dtype, width: int, sizes: list[int]) -> list[Tensor]:
    """Value and both gradients on fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, width, generator=generator).to(dtype).requires_grad_()
    # Rows of a wider table: each follows the one before at a distance.
    table = torch.randn(V, width + 3, generator=generator).to(dtype)
    weight = table[:, :width].requires_grad_()
    step = torch.arange(T).repeat_interleave(torch.tensor(sizes))
    ids = torch.randint(V // 2, (len(step),), generator=generator) * 2
    scores = set_scores(hidden, weight, ids, step, products=products)
    slope = torch.linspace(-1, 2, len(scores), dtype=scores.dtype)
    found = torch.autograd.grad(scores, (hidden, weight), slope)
    return [scores.detach(), *(g.to_dense() for g in found)]


def main() -> None:
    for *case, tile in CASES:
        kernels = triton_products(tile)
        found, expected = read(kernels, *case), read(GATHERED, *case)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)
        if found[0].dtype == torch.float64:
            again = read(kernels, *case)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    print("equal")


if __name__ == "__main__":
    main()
