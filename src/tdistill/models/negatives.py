"""Which tokens stand in for the vocabulary outside the candidate sets, drawn for every batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_UNIFORM = 0.5  # share of the proposal that is uniform over the vocabulary; measured, docs/log.md


def draw_negatives(
    set_ids: Int[Tensor, " M"], vocabulary_size: int, count: int
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Distinct tokens and the logs of their importance weights, from torch's global generator.

    The proposal is half the frequency of a token in the sets of the batch and half uniform: what is
    plausible at one state takes most of the mass off the set at others. Token v is drawn with
    probability ``min(1, k q_v)``, with k such that ``count`` are drawn in all (systematic sampling
    in a random order), and weighs one over it. Tokens of no set all have one probability, so the
    work is that of the sets and of ``count``, not of the vocabulary.

    Args:
        set_ids: token of every set member of the batch.
        vocabulary_size: V.
        count: tokens to draw; V or more takes every token at weight 1.

    Returns:
        Tokens, and ``-log P(drawn)`` of each.
    """
    device = set_ids.device
    if count >= vocabulary_size:
        every = torch.arange(vocabulary_size, device=device)
        return every, torch.zeros(vocabulary_size, device=device)
    members, frequency = set_ids.unique(return_counts=True)
    others = vocabulary_size - len(members)
    uniform = _UNIFORM / vocabulary_size
    proposal = (1 - _UNIFORM) * frequency.double() / frequency.sum() + uniform
    probability, of_others = _inclusion(proposal, uniform, others, count)
    order = torch.randperm(len(members), device=device)
    start = torch.rand(1, device=device, dtype=torch.float64)
    passed = (probability[order].cumsum(0) + start).floor()
    drawn = order[passed.diff(prepend=torch.zeros_like(start)) > 0]
    rest = _outside(members, vocabulary_size, count - len(drawn))
    chance = torch.cat([probability[drawn], of_others.expand(len(rest))])
    return torch.cat([members[drawn], rest]), -chance.log().float()


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


def _outside(members: Int[Tensor, " U"], vocabulary_size: int, count: int) -> Int[Tensor, " N"]:
    """Distinct tokens that are no members (ascending), each other token equally likely."""
    found = members.new_zeros(0)
    if vocabulary_size - len(members) < 4 * count:  # too dense for drawing until they are found
        free = torch.ones(vocabulary_size, dtype=torch.bool, device=members.device)
        free[members] = False
        found = free.nonzero().squeeze(1)
    while len(found) < count:
        more = torch.randint(vocabulary_size, (2 * count,), device=members.device)
        place = torch.searchsorted(members, more).clamp(max=len(members) - 1)
        found = torch.cat([found, more[members[place] != more]]).unique()
    return found[torch.randperm(len(found), device=members.device)[:count]]
