"""Run with TRITON_INTERPRET=1: the kernels against the readable reference, on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdistill.models.head import GATHERED, RowProducts, set_scores
from tdistill.models.head.triton_rows import TILES, TRITON, Tile, triton_products, tuned_products

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


def tried() -> None:
    """The size that takes least is used, found once for each width among those that fit it."""
    times: list[int] = []

    def bench(call: Callable[[], object], quantiles: Any) -> list[float]:
        call()
        times.append(len(times))
        return [-float(len(times))] * 3  # the last one is the fastest

    tiles = (Tile(4, 64), Tile(8, 32), Tile(16, 128))
    kernels = tuned_products(tiles, bench=bench)
    counts = []
    for width in (100, 100, 40):
        before = len(times)
        compared(kernels, torch.float32, width, SOME)
        counts.append(len(times) - before)
    # Scores; their sums for both gradients, of the same width and precision. 128 columns are too
    # many for the last.
    assert counts == [2 * 3, 0, 2 * 2], counts


def far_apart() -> None:
    """Three rows of a table of more than 2^31 numbers, 2^30 apart, in a file that has holes."""
    width, apart = 96, 2**30
    size = 2 * apart + width
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "table"
        with place.open("wb") as file:
            file.truncate(2 * size)
        table = torch.from_file(str(place), shared=True, size=size, dtype=torch.bfloat16)
        weight = table.as_strided((3, width), (apart, 1))
        weight.normal_(generator=torch.Generator().manual_seed(0))
        hidden = torch.randn(4, width).bfloat16()
        ids, offsets = torch.tensor([2, 0, 1, 2]), torch.tensor([0, 1, 3, 3, 4])
        for kernels in (TRITON, triton_products(TILES[1])):
            scores = kernels.dot(hidden, weight, ids, offsets)
            expected = GATHERED.dot(hidden, weight, ids, offsets)
            torch.testing.assert_close(scores, expected, rtol=1e-5, atol=2e-5)
            sums = kernels.weighted_sum(scores, ids, offsets, weight)
            plain = GATHERED.weighted_sum(scores, ids, offsets, weight)
            torch.testing.assert_close(sums, plain, rtol=1e-5, atol=1e-4)
            assert not sums[2].any()


def compared(
    kernels: RowProducts, dtype: torch.dtype, width: int, sizes: list[int]
) -> list[Tensor]:
    """What kernels give, held against the reference."""
    found, expected = (read(products, dtype, width, sizes) for products in (kernels, GATHERED))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)
    return found


def main() -> None:
    for *case, tile in CASES:
        kernels = triton_products(tile)
        found = compared(kernels, *case)
        if found[0].dtype == torch.float64:
            again = read(kernels, *case)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    compared(TRITON, torch.float32, 200, SOME)
    tried()
    far_apart()
    print("equal")


if __name__ == "__main__":
    main()
