"""Means with honest denominators: (sum, weight) pairs that are divided once, at the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """A sum and what to divide it by; pairs add, so uneven batches cannot bias a mean.

    Example:
        >>> pair = WeightedSum(torch.tensor(6.0), torch.tensor(2.0))
        >>> (pair + WeightedSum(torch.tensor(0.0), torch.tensor(1.0))).mean()
        2.0
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]

    def __add__(self, other: WeightedSum) -> WeightedSum:
        """Sum of both numerators over the sum of both denominators."""
        return WeightedSum(self.total + other.total, self.weight + other.weight)

    def mean(self) -> float:
        """The mean; NaN when nothing was weighed."""
        return float(self.total / self.weight) if self.weight else float("nan")


def masked_sum(values: Float[Tensor, " T"], mask: Bool[Tensor, " T"]) -> WeightedSum:
    """Sum and count of the steps where ``mask`` is true; masked values may be anything, even NaN.

    Example:
        >>> values = torch.tensor([1.0, float("nan"), 3.0])
        >>> masked_sum(values, torch.tensor([True, False, True])).mean()
        2.0
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return WeightedSum(kept.sum(), mask.sum().to(values.dtype))
