"""Tokens sampled off the captured sets: what stands for the teacher's mass there, without bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core import row_index


@dataclass(frozen=True, eq=False)
class Tail:
    """Distinct tokens drawn with replacement from the teacher's mass off the set, per step.

    Attributes:
        ids: tokens, each row in ascending order.
        log_probs: the teacher's log-probabilities over the full vocabulary, nats.
        counts: how often each was drawn; they add up to the number of draws in each row.
        offsets: row t is ``[offsets[t]:offsets[t + 1]]``; empty where the set holds all the mass.
    """

    ids: Int[Tensor, " J"]
    log_probs: Float[Tensor, " J"]
    counts: Int[Tensor, " J"]
    offsets: Int[Tensor, " R"]

    @property
    def sizes(self) -> Int[Tensor, " T"]:
        """Distinct tokens of each step."""
        return self.offsets.diff()

    @property
    def step(self) -> Int[Tensor, " J"]:
        """The step of every token."""
        return row_index(self.offsets)

    def to(self, device: torch.device | str) -> Tail:
        """The same tokens on another device."""
        fields = (self.ids, self.log_probs, self.counts, self.offsets)
        return Tail(*(field.to(device) for field in fields))


def concatenate_tails(tails: Sequence[Tail]) -> Tail:
    """Tails laid end to end in the given order."""
    sizes = torch.cat([tail.sizes for tail in tails])
    return Tail(
        torch.cat([tail.ids for tail in tails]),
        torch.cat([tail.log_probs for tail in tails]),
        torch.cat([tail.counts for tail in tails]),
        torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
    )


def take_rows(
    offsets: Int[Tensor, " R"], rows: Int[Tensor, " S"]
) -> tuple[Int[Tensor, " M"], Int[Tensor, " S+1"]]:
    """Members of chosen ragged rows, in the order chosen, and the offsets of the rows taken.

    Example:
        >>> members, taken = take_rows(torch.tensor([0, 2, 3]), torch.tensor([1, 0]))
        >>> members.tolist(), taken.tolist()
        ([2, 0, 1], [0, 1, 3])
    """
    sizes = offsets.diff()[rows]
    taken = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    shift = torch.repeat_interleave(offsets[:-1][rows] - taken[:-1], sizes)
    return torch.arange(len(shift), device=shift.device) + shift, taken
