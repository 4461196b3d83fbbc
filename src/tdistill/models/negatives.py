"""Which tokens stand in for the vocabulary outside the candidate sets, drawn for every update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_UNIFORM = 0.5  # share of the proposal that is uniform over the vocabulary; measured, docs/log.md


class Negatives(NamedTuple):
    """Tokens that stand in for the vocabulary.

    Attributes:
        ids: distinct tokens.
        log_weight: logs of their importance weights, nats.
    """

    ids: Int[Tensor, " N"]
    log_weight: Float[Tensor, " N"]

    def to(self, device: torch.device) -> Negatives:
        """On another device."""
        return Negatives(self.ids.to(device), self.log_weight.to(device))


@dataclass(frozen=True, eq=False)
class Occurrences:
    """How often tokens occur in candidate sets.

    Attributes:
        ids: distinct tokens, ascending.
        count: of each.
    """

    ids: Int[Tensor, " U"]
    count: Int[Tensor, " U"]

    @classmethod
    def of(cls, set_ids: Int[Tensor, " M"]) -> Occurrences:
        """In sets, given the token of every member.

        Example:
            >>> found = Occurrences.of(torch.tensor([7, 3, 7]))
            >>> found.ids.tolist(), found.count.tolist()
            ([3, 7], [1, 2])
        """
        return cls(*set_ids.unique(return_counts=True))

    @classmethod
    def total(cls, parts: Sequence[Occurrences]) -> Occurrences:
        """In the sets of all parts, in whatever order they are given."""
        ids, place = torch.cat([part.ids for part in parts]).unique(return_inverse=True)
        found = torch.cat([part.count for part in parts])
        return cls(ids, torch.zeros_like(ids).index_add(0, place, found))


def draw_negatives(
    found: Occurrences, vocabulary_size: int, count: int, generator: torch.Generator | None = None
) -> Negatives:
    """Distinct tokens and the logs of their importance weights.

    The proposal is half the frequency of a token in the sets and half uniform: what is
    plausible at one state takes most of the mass off the set at others. Token v is drawn with
    probability ``min(1, k q_v)``, with k such that ``count`` are drawn in all (systematic sampling
    in a random order), and weighs one over it. Tokens of no set all have one probability, so the
    work is that of the sets and of ``count``, not of the vocabulary.

    Args:
        found: tokens of the sets.
        vocabulary_size: V.
        count: tokens to draw; V or more takes every token at weight 1.
        generator: of the random numbers, on the tokens' device; torch's global one where None.

    Returns:
        Tokens, each with the weight ``1 / P(drawn)``.
    """
    members, frequency = found.ids, found.count
    device = members.device
    random: dict[str, Any] = {"device": device, "generator": generator}
    if count >= vocabulary_size:
        every = torch.arange(vocabulary_size, device=device)
        return Negatives(every, torch.zeros(vocabulary_size, device=device))
    others = vocabulary_size - len(members)
    uniform = _UNIFORM / vocabulary_size
    proposal = (1 - _UNIFORM) * frequency.double() / frequency.sum() + uniform
    probability, of_others = _inclusion(proposal, uniform, others, count)
    order = torch.randperm(len(members), **random)
    start = torch.rand(1, dtype=torch.float64, **random)
    passed = (probability[order].cumsum(0) + start).floor()
    drawn = order[passed.diff(prepend=torch.zeros_like(start)) > 0]
    rest = _outside(members, vocabulary_size, count - len(drawn), generator)
    chance = torch.cat([probability[drawn], of_others.expand(len(rest))])
    return Negatives(torch.cat([members[drawn], rest]), -chance.log().float())


def _inclusion(
    proposal: Float[Tensor, " U"], uniform: float, others: int, count: int
) -> tuple[Float[Tensor, " U"], Float[Tensor, ""]]:
    """``min(1, k q_v)`` with k such that the sum over all tokens is ``count``.

    Args:
        proposal: q of the tokens of the sets.
        uniform: q of each of the others, never above those.
        others: how many they are.
        count: tokens to draw, fewer than there are.

    Returns:
        The probabilities of the tokens of the sets, and that of each other token.
    """
    certain = torch.zeros_like(proposal, dtype=torch.bool)
    while True:  # tokens become certain one after the other, so it ends
        spread = proposal[~certain].sum() + uniform * others
        scale = (count - certain.sum()) / spread
        grown = certain | (scale * proposal >= 1)
        if grown.equal(certain):
            return (scale * proposal).masked_fill(certain, 1.0), scale * uniform
        certain = grown


def _outside(
    members: Int[Tensor, " U"],
    vocabulary_size: int,
    count: int,
    generator: torch.Generator | None,
) -> Int[Tensor, " N"]:
    """Distinct tokens that are no members (ascending), each other token equally likely."""
    found = members.new_zeros(0)
    random: dict[str, Any] = {"device": members.device, "generator": generator}
    if vocabulary_size - len(members) < 4 * count:  # too dense for drawing until they are found
        free = torch.ones(vocabulary_size, dtype=torch.bool, device=members.device)
        free[members] = False
        found = free.nonzero().squeeze(1)
    while len(found) < count:
        more = torch.randint(vocabulary_size, (2 * count,), **random)
        place = torch.searchsorted(members, more).clamp(max=len(members) - 1)
        found = torch.cat([found, more[members[place] != more]]).unique()
    return found[torch.randperm(len(found), **random)[:count]]
