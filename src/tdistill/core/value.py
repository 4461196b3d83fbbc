"""Values of a state in the top-p MDP: soft (3.2) and under a policy (inside 3.1)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core.segments import segment_logsumexp, segment_sum


def soft_value(
    q: Float[Tensor, " M"], offsets: Int[Tensor, " R"], *, temperature: float = 1.0
) -> Float[Tensor, " R-1"]:
    """``V_p(s) = tau log sum_{a in A_p(s)} exp(Q(s,a) / tau)`` (3.2).

    Args:
        q: Q(s, a) of the members, nats.
        offsets: rows of the sets.
        temperature: tau > 0; towards 0 the value tends to the maximum.

    Returns:
        Value per step, nats. ``max Q <= V <= max Q + tau log K`` for K members.

    Reference:
        Haarnoja et al., Reinforcement Learning with Deep Energy-Based Policies, 2017, eq. 3.

    Example:
        >>> import torch
        >>> soft_value(torch.zeros(4), torch.tensor([0, 4])).exp().round().tolist()
        [4.0]
    """
    return temperature * segment_logsumexp(q / temperature, offsets)


def expectation(
    values: Float[Tensor, " M"], log_policy: Float[Tensor, " M"], offsets: Int[Tensor, " R"]
) -> Float[Tensor, " R-1"]:
    """``E_{a ~ pi}[f(s,a)]`` for a policy given by its log-probabilities on the set.

    Example:
        >>> import torch
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> expectation(torch.tensor([1.0, 3.0]), half, torch.tensor([0, 2])).tolist()
        [2.0]
    """
    return segment_sum(log_policy.exp() * values, offsets)


def policy_value(
    q: Float[Tensor, " M"], log_policy: Float[Tensor, " M"], offsets: Int[Tensor, " R"]
) -> Float[Tensor, " R-1"]:
    """``E_{a ~ pi}[Q(s,a) - log pi(a|s)]``, the bracket of (3.1).

    For ``pi = softmax(Q)`` on the set it equals :func:`soft_value`.

    Args:
        q: Q(s, a) of the members, nats.
        log_policy: log-probabilities that sum to one within each row, nats.
        offsets: rows of the sets.

    Returns:
        Expected Q plus entropy per step, nats.

    Example:
        >>> import torch
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> policy_value(torch.zeros(2), half, torch.tensor([0, 2])).exp().tolist()
        [2.0]
    """
    return expectation(q - log_policy, log_policy, offsets)
