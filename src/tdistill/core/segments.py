"""Operations over compressed rows: row t of a flat array is ``values[offsets[t]:offsets[t + 1]]``.

Sets have a median of 4 members and a maximum of hundreds, so padding to the widest row would waste
most of the work; these functions cost what the members cost.

In the shapes, R counts row boundaries: T rows have R = T + 1 of them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

UNIT = 2.0**-52


def row_index(offsets: Int[Tensor, " R"], members: int) -> Int[Tensor, " M"]:
    """The row of every flat member.

    Args:
        offsets: row starts and the end of the last row, ascending from 0.
        members: how many there are, ``offsets[-1]``: to read it would be to wait for the device.

    Returns:
        For each member the index of its row.

    Example:
        >>> row_index(torch.tensor([0, 2, 2, 3]), 3).tolist()
        [0, 0, 2]
    """
    rows = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=members)


def offsets_of(sizes: Int[Tensor, " T"]) -> Int[Tensor, " R"]:
    """Offsets of rows of these sizes.

    Example:
        >>> offsets_of(torch.tensor([2, 0, 1])).tolist()
        [0, 2, 2, 3]
    """
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def kept_offsets(keep: Bool[Tensor, " M"], offsets: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
    """Offsets of the rows after only the marked members are kept.

    Example:
        >>> kept_offsets(torch.tensor([True, False, True]), torch.tensor([0, 2, 3])).tolist()
        [0, 1, 2]
    """
    return offsets_of(keep.long())[offsets]


def segment_sum(values: Float[Tensor, " M"], offsets: Int[Tensor, " R"]) -> Float[Tensor, " R-1"]:
    """Sum of each row; an empty row gives 0.

    Example:
        >>> segment_sum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 2, 2, 3])).tolist()
        [3.0, 0.0, 5.0]
    """
    # One long chain of additions a row: in float32 a row of 50k members loses two digits.
    total = values.new_zeros(offsets.numel() - 1, dtype=torch.float64)
    return total.index_add(0, row_index(offsets, len(values)), values.double()).to(values.dtype)


def segment_max(values: Float[Tensor, " M"], offsets: Int[Tensor, " R"]) -> Float[Tensor, " R-1"]:
    """Largest value of each row; an empty row gives minus infinity.

    Example:
        >>> segment_max(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 2, 3])).tolist()
        [2.0, 5.0]
    """
    lowest = values.new_full((offsets.numel() - 1,), float("-inf"))
    return lowest.scatter_reduce(0, row_index(offsets, len(values)), values, "amax")


def segment_logsumexp(
    values: Float[Tensor, " M"], offsets: Int[Tensor, " R"]
) -> Float[Tensor, " R-1"]:
    """Log of the sum of exponentials of each row, without overflow.

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> segment_logsumexp(half + 1000, torch.tensor([0, 2])).tolist()
        [1000.0]
    """
    with torch.no_grad():  # any per-row constant gives the same value and gradient
        peak = segment_max(values, offsets)
        peak = torch.where(peak.isfinite(), peak, torch.zeros_like(peak))
    shifted = values - peak[row_index(offsets, len(values))]
    return segment_sum(shifted.exp(), offsets).log() + peak


def exact_units(values: Float[Tensor, " *M"]) -> Int[Tensor, " *M"]:
    """Values as whole multiples of ``UNIT`` = 2^-52: integers whose sums are exact in any order.

    Example:
        >>> exact_units(torch.tensor([2.0**-50])).tolist()
        [4]
    """
    return (values.double() * (1 / UNIT)).round().long()


def segment_cumsum(values: Float[Tensor, " M"], offsets: Int[Tensor, " R"]) -> Tensor:
    """Running sum within each row, in float64, of values that sum to less than 1,000 a row.

    Probabilities are meant. They are added as integers (:func:`exact_units`), so that a row gives
    the same sums whatever the other rows hold.

    Example:
        >>> segment_cumsum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 2, 3])).tolist()
        [1.0, 3.0, 5.0]
    """
    units = exact_units(values)
    # int64 wraps around after 2,000 rows of mass 1; the difference within a row wraps back.
    running = torch.cat([units.new_zeros(1), units.cumsum(0)])
    before = running[offsets[:-1]][row_index(offsets, len(units))]
    return (running[1:] - before).double() * UNIT
