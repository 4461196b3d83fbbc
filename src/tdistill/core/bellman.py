"""The soft Bellman backup and its inverse, the implied reward (3.1), (4.1)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def soft_bellman_backup(
    reward: Float[Tensor, " *T"], next_value: Float[Tensor, " *T"], discount: Float[Tensor, " *T"]
) -> Float[Tensor, " *T"]:
    """``r + discount V(s')``: the right-hand side of (3.1) for one sampled transition.

    Args:
        reward: reward of the step, nats.
        next_value: value of the successor state, nats.
        discount: gamma, or 0 where the response ended at this step.

    Returns:
        The target for Q(s, a), nats.

    Example:
        >>> import torch
        >>> one = torch.tensor([1.0, 1.0])
        >>> soft_bellman_backup(one, 10 * one, torch.tensor([0.5, 0.0])).tolist()
        [6.0, 1.0]
    """
    return reward + discount * next_value


def implied_reward(
    q_a: Float[Tensor, " *T"], next_value: Float[Tensor, " *T"], discount: Float[Tensor, " *T"]
) -> Float[Tensor, " *T"]:
    """``r = Q(s,a) - discount V(s')`` (4.1): the reward for which Q is consistent.

    Args:
        q_a: Q of the taken action, nats.
        next_value: value of the successor state, nats.
        discount: gamma, or 0 where the response ended at this step.

    Returns:
        Implied reward per step, nats.

    Reference:
        Garg et al., IQ-Learn, 2021, the inverse soft Bellman operator, eq. 6.

    Example:
        >>> import torch
        >>> implied_reward(torch.tensor([6.0]), torch.tensor([10.0]), torch.tensor([0.5])).tolist()
        [1.0]
    """
    return q_a - discount * next_value


def td_error(
    q_a: Float[Tensor, " *T"],
    reward: Float[Tensor, " *T"],
    next_value: Float[Tensor, " *T"],
    discount: Float[Tensor, " *T"],
) -> Float[Tensor, " *T"]:
    """``r + discount V(s') - Q(s,a)``: the one-step error, 0 where Q is consistent with r.

    Args:
        q_a: Q of the taken action, nats.
        reward: reward of the step, nats.
        next_value: value of the successor state, nats.
        discount: gamma, or 0 where the response ended.

    Returns:
        Error per step, nats.

    Example:
        >>> td_error(4.0, 1.0, 10.0, 0.5)
        2.0
    """
    return soft_bellman_backup(reward, next_value, discount) - q_a
