"""Projection of a policy onto candidate sets (2.2), (2.3)."""

from __future__ import annotations

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
        >>> import torch
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
        >>> import torch
        >>> project(torch.tensor([0.5, 0.25, 0.1]).log(), torch.tensor([0, 2, 3])).exp()
        tensor([0.6667, 0.3333, 1.0000])
    """
    return scores - log_set_mass(scores, offsets)[row_index(offsets)]
