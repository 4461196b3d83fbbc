"""What every p, or every gain, would lose and keep: sums over a cache, in one pass.

Sets nest, so a rule that takes more and more has a first value at which it takes a given member. At
that value the sums change by what the member changes; running sums over the values then hold for
all of them. (3.3), averaged over the states, is such a sum: a step k after the first of its
response is behind k states, which see its loss with weights gamma, ..., gamma^k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core import loss_of_unseen_steps, row_index, segment_cumsum
from tdistill.teacher.cache.blocks import Block

GapRule = Literal["global", "per-state"]

P_UNITS = 10_000  # p is a multiple of 1/10,000
_LARGEST_GAIN = 0.7  # a second member adds at most log 2: this leaves one member a state
_GAIN_UNITS = 1_000  # gains are 0.7 * 10^(-k/1,000): steps of 0.23%
_GAIN_DECADES = 8


@dataclass(frozen=True, eq=False)
class Members:
    """The members of a block, with what holds if they are the last of their set.

    Attributes:
        before: mass of those before each one, in the precision that sets are cut in.
        gain: probability over that mass; infinite for the first.
        loss: change of ``-log m`` by each one, nats; of the first, the loss with it alone.
        first: whether each one is the first of its set.
        step: of each one.
    """

    before: Float[Tensor, " M"]
    gain: Float[Tensor, " M"]
    loss: Float[Tensor, " M"]
    first: Tensor
    step: Int[Tensor, " M"]


def members_of(block: Block) -> Members:
    """The members of all sets, in order."""
    sets = block.sets
    probs = sets.log_probs.exp()
    mass = segment_cumsum(probs, sets.offsets)
    first = torch.zeros(len(mass), dtype=torch.bool)
    first[sets.offsets[:-1]] = True
    losses = -mass.log().clamp(max=0.0)
    change = torch.diff(losses, prepend=losses.new_zeros(1))
    return Members(
        before=torch.cat([mass.new_zeros(1), mass])[:-1].to(probs.dtype),
        gain=torch.where(first, math.inf, probs.double() / (mass - probs.double())),
        loss=torch.where(first, losses, change),
        first=first,
        step=row_index(sets.offsets),
    )


@dataclass
class Visited:
    """The states of the responses: how often they ended, and what is behind a cut.

    Attributes:
        discount: gamma.
        steps: so far.
        ended: responses that ended.
        behind: sum over the states of cut responses of the weight with which they see what follows.
    """

    discount: float
    steps: int = 0
    ended: int = 0
    behind: float = 0.0

    def weights(self, count: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """``gamma + ... + gamma^k`` of so many states before."""
        if self.discount == 1.0:
            return count.double()
        return self.discount * (1.0 - self.discount ** count.double()) / (1.0 - self.discount)

    def add(self, block: Block) -> Float[Tensor, " T"]:
        """Count the responses of a block; returns the weight of each step's loss."""
        lengths = block.lengths
        self.steps += int(lengths.sum())
        self.ended += int(block.ended.sum())
        self.behind += float(self.weights(lengths[~block.ended]).sum())
        starts = lengths.cumsum(0) - lengths
        return self.weights(torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths))

    def bound(self, loss: float, weighted: float, *, as_cached: bool = False) -> float:
        """(3.3) averaged over the states, nats; infinite where nothing bounds it.

        Args:
            loss: sum of ``-log m`` over the steps.
            weighted: the same with weights.
            as_cached: as if a response that was cut had ended there, which is less than the bound
                of the teacher; else it goes on at the mean loss until it ends as often as others.
        """
        if not as_cached and self.behind > 0.0:
            ending = min(1.0, self.ended / self.steps)
            mean = loss / self.steps
            weighted += self.behind * loss_of_unseen_steps(mean, ending, discount=self.discount)
        return weighted / self.steps


class GapSums:
    """Sums for every value of a rule, from the smallest sets to all that was captured.

    Args:
        rule: one p for all states, or one gain in log mass, at which each state stops by itself.
        captured_top_p: the largest p.
        discount: gamma.
    """

    def __init__(self, rule: GapRule, captured_top_p: float, *, discount: float) -> None:
        self.rule: GapRule = rule
        self.values, self._starting = _values(rule, captured_top_p)
        self.visited = Visited(discount)
        self._sums = np.zeros((4, len(self.values) + 1))
        self._bits = 0

    def add(self, block: Block, members: Members) -> None:
        """Count the steps of a block."""
        weight = self.visited.add(block)[members.step]
        start = torch.where(members.first, 0, self._starting(members)).numpy()
        self._bits += int(block.member_bits.sum())
        counted = (members.loss, members.loss * weight, None, block.member_bits)
        for row, values in enumerate(counted):
            numbers = None if values is None else values.numpy()
            self._sums[row] += np.bincount(start, numbers, minlength=self._sums.shape[1])

    @cached_property
    def _running(self) -> np.ndarray:
        return self._sums.cumsum(axis=1)

    def bound(self, k: int, *, as_cached: bool = False) -> float:
        """(3.3) averaged over the states with sets of value k, nats; see :class:`Visited`."""
        loss, weighted = self._running[:2, k]
        return self.visited.bound(float(loss), float(weighted), as_cached=as_cached)

    def mean_loss(self, k: int) -> float:
        """Mean of ``-log m`` with sets of value k, nats."""
        return float(self._running[0, k]) / self.visited.steps

    def mean_size(self, k: int) -> float:
        """Members a step with sets of value k."""
        return float(self._running[2, k]) / self.visited.steps

    def bytes_per_step(self, k: int, whole: int) -> float:
        """An estimate of the bytes a step if only sets of value k had been captured.

        All else that a step takes (its token, normaliser, size, tail, its share of the prompt) is
        as it is now.

        Args:
            k: number of the value.
            whole: bytes of all shards.
        """
        saved = (self._bits - float(self._running[3, k])) / 8
        return (whole - saved) / self.visited.steps


def _values(
    rule: GapRule, most: float
) -> tuple[list[float], Callable[[Members], Int[Tensor, " M"]]]:
    """Values from the smallest sets to everything captured, and where each member is first in."""
    if rule == "global":
        values = [k / P_UNITS for k in range(1, P_UNITS) if k / P_UNITS < most] + [most]
        # As `truncate`: in while the mass before is less than p, and all of them where p is 1.
        limits = torch.tensor(values)
        limits[-1] = math.inf if most == 1.0 else limits[-1]
        return values, lambda members: _above(limits, members.before)
    count = _GAIN_DECADES * _GAIN_UNITS
    gains = [float(f"{_LARGEST_GAIN * 10 ** (-k / _GAIN_UNITS):.4g}") for k in range(count)] + [0.0]
    least = -torch.tensor(gains, dtype=torch.float64).expm1()
    return gains, lambda members: torch.searchsorted(least, -members.gain, right=True)


def _above(limits: Float[Tensor, " C"], mass: Float[Tensor, " M"]) -> Int[Tensor, " M"]:
    """The first of the limits, multiples of 1/10,000 but for the last, that is above each mass.

    Example:
        >>> _above(torch.tensor([1e-4, 2e-4, 2.5e-4]), torch.tensor([0.0, 1e-4, 2.2e-4, 0.9]))
        tensor([0, 1, 2, 3])
    """
    guess = (mass * P_UNITS).long().clamp(max=len(limits) - 1)  # off by one where it was rounded
    low = (limits[(guess - 1).clamp(min=0)] > mass) & (guess > 0)
    return guess - low.long() + (limits[guess] <= mass).long()
