"""The normaliser over the vocabulary from the candidate set and a sample of the other tokens.

The set's part of the sum is exact; the rest is an importance-weighted sum over N negatives that all
steps share, so the work is one [T, N] product whatever the vocabulary.

Reference: Bengio and Senecal, Adaptive importance sampling to accelerate training of a neural
probabilistic language model, IEEE Transactions on Neural Networks, 2008.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.core.segments import row_index, segment_logsumexp


def set_membership(
    ids: Int[Tensor, " M"], offsets: Int[Tensor, " R"], tokens: Int[Tensor, " N"]
) -> Bool[Tensor, "R-1 N"]:
    """Which of N distinct tokens are members of which sets.

    Args:
        ids: token of every member.
        offsets: rows of the sets.
        tokens: distinct tokens, in any order.

    Returns:
        True where the token of the column is in the set of the row.

    Example:
        >>> sets = torch.tensor([5, 2, 9]), torch.tensor([0, 2, 3])
        >>> set_membership(*sets, torch.tensor([9, 2])).tolist()
        [[False, True], [True, False]]
    """
    ascending, order = tokens.sort()
    place = torch.searchsorted(ascending, ids).clamp(max=len(tokens) - 1)
    hit = ascending[place] == ids
    count = torch.zeros(offsets.numel() - 1, len(tokens), dtype=torch.int32, device=tokens.device)
    at = (row_index(offsets, len(ids)), order[place])
    return count.index_put(at, hit.int(), accumulate=True) > 0


def sampled_log_normaliser(
    on_set: Float[Tensor, " M"],
    offsets: Int[Tensor, " R"],
    negatives: Float[Tensor, "T N"],
    log_weight: Float[Tensor, " N"],
    member: Bool[Tensor, "T N"],
) -> Float[Tensor, " T"]:
    """``log( sum_A exp z + sum_{n not in A} w_n exp z_n )``: an estimate of ``log sum_V exp z``.

    The sum inside the logarithm is unbiased if ``w_n`` is one over the expected number of times
    that n is drawn. Its logarithm is then biased downwards, by half the relative variance of the
    sum to leading order (Jensen), which falls as 1 / N, and the standard deviation as
    ``1 / sqrt(N)``. With every token drawn once at weight 1 it is exact.

    Args:
        on_set: logits of the set members, nats.
        offsets: rows of the sets.
        negatives: logits of the drawn tokens at every step, nats.
        log_weight: log importance weight of each drawn token.
        member: where a drawn token is in the step's own set, and so already counted.

    Returns:
        Estimated log-normaliser per step, nats; never below the value of the set.

    Example:
        >>> on_set, one_row = torch.zeros(2), torch.tensor([0, 2])
        >>> found = sampled_log_normaliser(  # two of eight tokens outside the set were drawn
        ...     on_set, one_row, torch.zeros(1, 2), torch.full((2,), 4.0).log(),
        ...     torch.tensor([[False, False]]),
        ... )
        >>> found.exp().round().tolist()
        [10.0]
    """
    rest = (negatives + log_weight).masked_fill(member, float("-inf"))
    value = segment_logsumexp(on_set, offsets)
    return torch.cat([value[:, None], rest], dim=1).logsumexp(1)


def evenly_spread(
    place: Int[Tensor, " T"], offset: Float[Tensor, " T"], *, share: float
) -> Bool[Tensor, " T"]:
    """Marks of a share of the places 0, 1, 2, ... of a row, evenly spread from an offset on.

    Over an offset that is uniform in [0, 1), each place is marked with probability ``share``; of L
    places ``share L`` are, up to one. This is systematic sampling.

    Args:
        place: of every step in its row.
        offset: of the row of every step.
        share: in (0, 1].

    Example:
        >>> offset = torch.full((8,), 0.5, dtype=torch.float64)
        >>> evenly_spread(torch.arange(8), offset, share=0.25).nonzero().flatten().tolist()
        [1, 5]
    """
    before = place.double() * share + offset
    return (before + share).floor() > before.floor()


def estimated_log_normaliser(
    set_value: Float[Tensor, " T"],
    exact: Float[Tensor, " S"],
    steps: Int[Tensor, " S"],
    *,
    share: float,
) -> Float[Tensor, " T"]:
    """``V + [t in S] (log Z - V) / share``: the log-normaliser from its values at some steps.

    Where every step is in S with probability ``share`` it is unbiased, in value and in gradient,
    and so is every loss that is linear in it. V, the value of the set, is known at all steps; what
    is estimated is the rest, ``log Z - V = -log`` of the mass on the set.

    Args:
        set_value: V of every step, nats.
        exact: log Z of the steps of S, nats.
        steps: S, distinct.
        share: probability of a step to be in S.

    Example:
        >>> one, half = torch.tensor([2.0]), torch.tensor([1])
        >>> estimated_log_normaliser(torch.tensor([1.0, 1.0]), one, half, share=0.5).tolist()
        [1.0, 3.0]
    """
    return set_value.index_add(0, steps, (exact - set_value[steps]) / share)
