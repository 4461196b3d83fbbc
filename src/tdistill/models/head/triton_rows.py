"""Row products as Triton kernels: rows are read where they lie, nothing between is stored.

Both are deterministic: every result is summed by one program, in the order of its members.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
# ruff: noqa: PLR0917

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tdistill.core import row_index
from tdistill.models.head import RowProducts

_MEMBERS, _WIDTH = 16, 128  # of a tile; both powers of 2


@triton.jit
def _dot_kernel(
    left, right, step, ids, out, members, width, TILE: tl.constexpr, WIDE: tl.constexpr
):
    """One program a tile of members: ``out[m] = left[step[m]] . right[ids[m]]``."""
    m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = m < members
    left_row = tl.load(step + m, mask=there, other=0) * width
    right_row = tl.load(ids + m, mask=there, other=0) * width
    total = tl.zeros((TILE,), dtype=out.dtype.element_ty)
    for start in range(0, width, WIDE):
        d = start + tl.arange(0, WIDE)
        inside = there[:, None] & (d < width)[None, :]
        a = tl.load(left + left_row[:, None] + d[None, :], mask=inside, other=0.0)
        b = tl.load(right + right_row[:, None] + d[None, :], mask=inside, other=0.0)
        total += tl.sum(a.to(total.dtype) * b.to(total.dtype), axis=1)
    tl.store(out + m, total, mask=there)


@triton.jit
def _sum_kernel(values, index, offsets, rows, out, width, TILE: tl.constexpr, WIDE: tl.constexpr):
    """One program a group and a tile of columns: ``out[r] = sum_m values[m] rows[index[m]]``."""
    r = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    first, last = tl.load(offsets + r), tl.load(offsets + r + 1)
    total = tl.zeros((WIDE,), dtype=out.dtype.element_ty)
    for start in range(first, last, TILE):
        m = start + tl.arange(0, TILE)
        there = m < last
        value = tl.load(values + m, mask=there, other=0.0).to(total.dtype)
        row = tl.load(index + m, mask=there, other=0) * width
        inside = there[:, None] & (d < width)[None, :]
        part = tl.load(rows + row[:, None] + d[None, :], mask=inside, other=0.0)
        total += tl.sum(value[:, None] * part.to(total.dtype), axis=0)
    tl.store(out + r * width + d, total, mask=d < width)


def _dot(left: Tensor, right: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    left, right, ids = left.contiguous(), right.contiguous(), ids.contiguous()
    out = left.new_empty(len(ids), dtype=_wide(left, right))
    if len(ids):
        grid = (triton.cdiv(len(ids), _MEMBERS),)
        sizes = (len(ids), left.shape[1])
        _dot_kernel[grid](left, right, row_index(offsets), ids, out, *sizes, _MEMBERS, _WIDTH)
    return out


def _weighted_sum(values: Tensor, index: Tensor, offsets: Tensor, rows: Tensor) -> Tensor:
    values, index, rows = values.contiguous(), index.contiguous(), rows.contiguous()
    groups, width = len(offsets) - 1, rows.shape[1]
    out = rows.new_empty(groups, width, dtype=_wide(values, rows))
    if groups:
        grid = (groups, triton.cdiv(width, _WIDTH))
        _sum_kernel[grid](values, index, offsets, rows, out, width, _MEMBERS, _WIDTH)
    return out


def _wide(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


TRITON = RowProducts(_dot, _weighted_sum)
