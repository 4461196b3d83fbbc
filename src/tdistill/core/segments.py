"""Operations over compressed rows: row t of a flat array is ``values[offsets[t]:offsets[t + 1]]``.

Sets have a median of 4 members and a maximum of hundreds, so padding to the widest row would waste
most of the work; these functions cost what the members cost.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def row_index(offsets: Int[Tensor, " T+1"]) -> Int[Tensor, " M"]:
    """The row of every flat member.

    Args:
        offsets: row starts and the end of the last row, ascending from 0.

    Returns:
        For each member the index of its row.

    Example:
        >>> row_index(torch.tensor([0, 2, 2, 3])).tolist()
        [0, 0, 2]
    """
    rows = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff())


def segment_sum(values: Float[Tensor, " M"], offsets: Int[Tensor, " T+1"]) -> Float[Tensor, " T"]:
    """Sum of each row; an empty row gives 0.

    Example:
        >>> segment_sum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 2, 2, 3])).tolist()
        [3.0, 0.0, 5.0]
    """
    total = values.new_zeros(offsets.numel() - 1)
    return total.index_add(0, row_index(offsets), values)


def segment_max(values: Float[Tensor, " M"], offsets: Int[Tensor, " T+1"]) -> Float[Tensor, " T"]:
    """Largest value of each row; an empty row gives minus infinity.

    Example:
        >>> segment_max(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 2, 3])).tolist()
        [2.0, 5.0]
    """
    lowest = values.new_full((offsets.numel() - 1,), float("-inf"))
    return lowest.scatter_reduce(0, row_index(offsets), values, "amax")


def segment_logsumexp(
    values: Float[Tensor, " M"], offsets: Int[Tensor, " T+1"]
) -> Float[Tensor, " T"]:
    """Log of the sum of exponentials of each row, without overflow.

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> segment_logsumexp(half + 1000, torch.tensor([0, 2])).tolist()
        [1000.0]
    """
    with torch.no_grad():  # any per-row constant gives the same value and gradient
        peak = segment_max(values, offsets)
        peak = torch.where(peak.isfinite(), peak, torch.zeros_like(peak))
    shifted = values - peak[row_index(offsets)]
    return segment_sum(shifted.exp(), offsets).log() + peak


def segment_cumsum(values: Float[Tensor, " M"], offsets: Int[Tensor, " T+1"]) -> Tensor:
    """Running sum within each row, accumulated and returned in float64.

    The sum runs over the whole array, so float32 would lose the digits of the late rows.

    Example:
        >>> segment_cumsum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 2, 3])).tolist()
        [1.0, 3.0, 5.0]
    """
    running = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    return running[1:] - running[offsets[:-1]][row_index(offsets)]
