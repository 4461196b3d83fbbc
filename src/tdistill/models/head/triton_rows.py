"""Row products as Triton kernels: rows are read where they lie, nothing between is stored.

Every result is summed by one program, in the order of its members, so the same programs give the
same bits. How large programs are is tried once for each width and precision, and Triton remembers
it on the disk: on one machine a run that goes on sums as it did before; another card may round
otherwise. Rows need not follow each other: what counts is the distance between them, which is 64
bits wide, so a table may hold more than 2^31 numbers.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false
# ruff: noqa: PLR0917

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tdistill.core import row_index
from tdistill.models.head import RowProducts


class Tile(NamedTuple):
    """What one program of a kernel holds at a time.

    Attributes:
        members: a power of 2.
        width: columns, a power of 2; no more than there are.
        warps: threads of a program over 32.
    """

    members: int = 16
    width: int = 128
    warps: int = 4

    def of(self, columns: int) -> Tile:
        """Without columns that no row has."""
        return self._replace(width=min(self.width, triton.next_power_of_2(max(columns, 1))))

    @property
    def settings(self) -> dict[str, int]:
        """As arguments of a kernel."""
        return {"TILE": self.members, "WIDE": self.width, "num_warps": self.warps}


TILES = (
    Tile(),
    Tile(4, 256, 4),
    Tile(8, 512, 4),
    Tile(32, 64, 4),
    Tile(32, 128, 8),
    Tile(64, 64, 8),
)
"""What is tried. The first is what there is without a trial."""


@triton.jit
def _dot_kernel(
    left,
    right,
    step,
    ids,
    out,
    members,
    width,
    left_row,
    right_row,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program a tile of members: ``out[m] = left[step[m]] . right[ids[m]]``."""
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = m < members
    from_left = tl.load(step + m, mask=there, other=0).to(tl.int64) * left_row
    from_right = tl.load(ids + m, mask=there, other=0).to(tl.int64) * right_row
    total = tl.zeros((TILE,), dtype=out.dtype.element_ty)
    for start in range(0, width, WIDE):
        d = start + tl.arange(0, WIDE)
        inside = there[:, None] & (d < width)[None, :]
        a = tl.load(left + from_left[:, None] + d[None, :], mask=inside, other=0.0)
        b = tl.load(right + from_right[:, None] + d[None, :], mask=inside, other=0.0)
        total += tl.sum(a.to(total.dtype) * b.to(total.dtype), axis=1)
    tl.store(out + m, total, mask=there)


@triton.jit
def _sum_kernel(
    values, index, offsets, rows, out, width, row_stride, TILE: tl.constexpr, WIDE: tl.constexpr
):
    """One program a group and a tile of columns: ``out[r] = sum_m values[m] rows[index[m]]``."""
    r = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    first, last = tl.load(offsets + r), tl.load(offsets + r + 1)
    total = tl.zeros((WIDE,), dtype=out.dtype.element_ty)
    for start in range(first, last, TILE):
        m = start + tl.arange(0, TILE)
        there = m < last
        value = tl.load(values + m, mask=there, other=0.0).to(total.dtype)
        row = tl.load(index + m, mask=there, other=0).to(tl.int64) * row_stride
        inside = there[:, None] & (d < width)[None, :]
        part = tl.load(rows + row[:, None] + d[None, :], mask=inside, other=0.0)
        total += tl.sum(value[:, None] * part.to(total.dtype), axis=0)
    tl.store(out + r * width + d, total, mask=d < width)


def triton_products(tile: Tile) -> RowProducts:
    """The kernels with programs of a size.

    Args:
        tile: what a program holds.
    """
    return _products(_dot_kernel, _sum_kernel, lambda width: tile.of(width).settings)


def tuned_products(
    tiles: Sequence[Tile] = TILES, *, bench: Callable[..., Any] | None = None
) -> RowProducts:
    """The kernels with programs of the fastest size, found at the first use of a width.

    Args:
        tiles: sizes of programs; of one there is nothing to try.
        bench: times a call, as :func:`triton.testing.do_bench`; None: as the device's driver does.
    """
    sizes = [triton.Config({"TILE": t.members, "WIDE": t.width}, num_warps=t.warps) for t in tiles]
    tuned = triton.autotune(
        sizes,
        key=["width"],
        prune_configs_by={"early_config_prune": _fitting},
        do_bench=bench,
        cache_results=True,
    )
    return _products(tuned(_dot_kernel), tuned(_sum_kernel), lambda width: {})


def _fitting(sizes: Sequence[Any], arguments: Mapping[str, Any], **_: Any) -> list[Any]:
    """Those without columns that no row has; the narrowest where all have."""
    most = triton.next_power_of_2(max(arguments["width"], 1))
    narrowest = min(size.kwargs["WIDE"] for size in sizes)
    return [size for size in sizes if size.kwargs["WIDE"] <= max(most, narrowest)]


def _products(
    dot_kernel: Any, sum_kernel: Any, settings: Callable[[int], dict[str, int]]
) -> RowProducts:
    """Both products by kernels.

    Args:
        dot_kernel: of the first; ``sum_kernel`` of the second.
        settings: what they are told of their programs for rows of a width; nothing where that is
            tried.
    """

    def dot(left: Tensor, right: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        left, right, ids = _whole_rows(left), _whole_rows(right), ids.contiguous()
        members, width = len(ids), left.shape[1]
        out = left.new_empty(members, dtype=_wide(left, right))
        if members:
            step = row_index(offsets, members)
            dot_kernel[lambda meta: (triton.cdiv(members, meta["TILE"]),)](
                *(left, right, step, ids, out),
                *(members, width, left.stride(0), right.stride(0)),
                **settings(width),
            )
        return out

    def weighted_sum(values: Tensor, index: Tensor, offsets: Tensor, rows: Tensor) -> Tensor:
        values, index, rows = values.contiguous(), index.contiguous(), _whole_rows(rows)
        groups, width = len(offsets) - 1, rows.shape[1]
        out = rows.new_empty(groups, width, dtype=_wide(values, rows))
        if groups:
            sum_kernel[lambda meta: (groups, triton.cdiv(width, meta["WIDE"]))](
                values, index, offsets, rows, out, width, rows.stride(0), **settings(width)
            )
        return out

    return RowProducts(dot, weighted_sum)


def _whole_rows(table: Tensor) -> Tensor:
    """A table whose rows lie in one piece each, wherever they lie."""
    return table if table.stride(1) == 1 else table.contiguous()


def _wide(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


TRITON = tuned_products(TILES[:1] if triton.knobs.runtime.interpret else TILES)
