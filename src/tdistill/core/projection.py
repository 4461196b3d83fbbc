"""Projection of a policy onto candidate sets (2.2), (2.3), and what is left outside them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core.segments import row_index, segment_logsumexp


def log_set_mass(
    log_probs: Float[Tensor, " M"], offsets: Int[Tensor, " R"]
) -> Float[Tensor, " R-1"]:
    """``log m_p(s)``, the log of the mass that a policy puts on the set (2.2).

    Args:
        log_probs: the policy's log-probabilities of the members, over the full vocabulary, nats.
        offsets: rows of the sets.

    Returns:
        Log mass per step, nats, at most 0 up to rounding.

    Example:
        >>> log_set_mass(torch.tensor([0.5, 0.25]).log(), torch.tensor([0, 2])).exp().tolist()
        [0.75]
    """
    return segment_logsumexp(log_probs, offsets)


def project(scores: Float[Tensor, " M"], offsets: Int[Tensor, " R"]) -> Float[Tensor, " M"]:
    """``log proj_p pi(a|s)`` on the set (2.3): the policy renormalised over A_p(s).

    Scores may be log-probabilities of any normalisation or raw logits: a constant per step cancels.

    Args:
        scores: log-probabilities or logits of the members.
        offsets: rows of the sets.

    Returns:
        Log-probabilities that sum to one within each row, nats.

    Example:
        >>> project(torch.tensor([0.5, 0.25, 0.1]).log(), torch.tensor([0, 2, 3])).exp()
        tensor([0.6667, 0.3333, 1.0000])
    """
    return scores - log_set_mass(scores, offsets)[row_index(offsets, len(scores))]


def log_rest(log_mass: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """``log(1 - mass)``: the log of what a policy leaves outside a set of known log mass.

    A mass within rounding of 1 leaves one unit of rounding, so that the result is finite.

    Example:
        >>> log_rest(torch.tensor([0.75, 0.0]).log()).exp().tolist()
        [0.25, 1.0]
    """
    unit = torch.finfo(log_mass.dtype).eps
    return (-log_mass.clamp(max=-unit).expm1()).log()


def with_rest(
    log_probs: Float[Tensor, " M"], rest: Float[Tensor, " T"], offsets: Int[Tensor, " R"]
) -> tuple[Float[Tensor, " N"], Int[Tensor, " R"]]:
    """Rows with one further, last outcome each: everything that is not a member.

    Args:
        log_probs: log-probabilities of the members, nats.
        rest: log-probability of the further outcome of each row, nats.
        offsets: rows of the sets.

    Returns:
        Log-probabilities of the N = M + T outcomes, and their rows.

    Example:
        >>> members, rest = torch.tensor([0.5, 0.25, 0.1]).log(), torch.tensor([0.25, 0.9]).log()
        >>> outcomes, offsets = with_rest(members, rest, torch.tensor([0, 2, 3]))
        >>> outcomes.exp(), offsets.tolist()
        (tensor([0.5000, 0.2500, 0.2500, 0.1000, 0.9000]), [0, 3, 5])
    """
    row = row_index(offsets, len(log_probs))
    members = torch.arange(len(log_probs), device=offsets.device)
    widened = offsets + torch.arange(offsets.numel(), device=offsets.device)
    outcomes = log_probs.new_empty(log_probs.numel() + rest.numel())
    outcomes = outcomes.index_copy(0, members + row, log_probs)
    return outcomes.index_copy(0, widened[1:] - 1, rest.to(outcomes.dtype)), widened
