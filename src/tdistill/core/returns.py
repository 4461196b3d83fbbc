"""Returns along responses: discounted sums, and the soft K-step and lambda returns.

Steps are flat, rows laid end to end. Along a row, ``G_t - Q(s_t,a_t)`` is a discounted sum of
one-step errors (:func:`tdistill.core.td_error`), because ``V(s) + log pi(a|s) = Q(s,a)``: so all
returns agree exactly where Q is consistent with the reward at every step, whatever policy wrote the
row. No importance weights are needed.

Reference: Nachum et al., Bridging the Gap Between Value and Policy Based Reinforcement Learning,
2017, arXiv 1702.08892; Sutton and Barto, Reinforcement Learning, 2018, section 12.1.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdistill.core.transitions import Transitions, successor


def k_step_return(
    reward: Float[Tensor, " T"],
    log_policy: Float[Tensor, " T"],
    value: Float[Tensor, " T"],
    links: Transitions,
    *,
    horizon: int,
) -> Float[Tensor, " T"]:
    """``G_t = r_t + sum_{0<k<K} disc^k (r_{t+k} - log pi(a_{t+k}|s_{t+k})) + disc^K V(s_{t+K})``.

    A window that reaches the end of a finished row stops there; one that would pass the last state
    of a cut row bootstraps from V of that state.

    Args:
        reward: reward of every step, nats.
        log_policy: the student's log-probability of every action on its set, nats.
        value: V(s_t) of every step, nats.
        links: discounts and boundaries of the steps.
        horizon: K >= 1; 1 is the one-step target.

    Returns:
        Target for Q per step, nats; without meaning where ``can_bootstrap`` is false.

    Example:
        >>> one, yes = torch.ones(3), torch.tensor([True, True, False])
        >>> cut = Transitions(0.5 * one, yes, yes)
        >>> k_step_return(one, 0 * one, 8 * one, cut, horizon=2).tolist()
        [3.5, 5.0, 1.0]
    """
    to_go, target = value, reward
    for _ in range(horizon):
        target = reward + links.discount * successor(to_go, links.has_successor)
        to_go = torch.where(links.can_bootstrap, target - log_policy, value)
    return target


def lambda_return(
    reward: Float[Tensor, " T"],
    log_policy: Float[Tensor, " T"],
    value: Float[Tensor, " T"],
    links: Transitions,
    *,
    trace: float,
) -> Float[Tensor, " T"]:
    """``G_t = r_t + disc ((1 - lambda) V(s_{t+1}) + lambda (G_{t+1} - log pi(a_{t+1}|s_{t+1})))``.

    The mean of all K-step returns with weights ``(1 - lambda) lambda^(K-1)``; boundaries and
    arguments are those of :func:`k_step_return`.

    Args:
        reward: reward of every step, nats.
        log_policy: the student's log-probability of every action on its set, nats.
        value: V(s_t) of every step, nats.
        links: discounts and boundaries of the steps.
        trace: lambda in [0, 1]; 0 is the one-step target, 1 the longest return of the row.

    Returns:
        Target for Q per step, nats; without meaning where ``can_bootstrap`` is false.

    Example:
        >>> one, yes = torch.ones(3), torch.tensor([True, True, False])
        >>> cut = Transitions(0.5 * one, yes, yes)
        >>> lambda_return(one, 0 * one, 8 * one, cut, trace=0.5).tolist()
        [4.25, 5.0, 1.0]
    """
    mixed = (1.0 - trace) * successor(value, links.has_successor)
    weight = trace * links.discount
    known = links.can_bootstrap.to(value.dtype)
    beside = torch.where(links.can_bootstrap, -log_policy, value)  # of to-go, beside the return
    first = reward + links.discount * mixed + weight * successor(beside, links.has_successor)
    keep = weight * successor(known, links.has_successor)
    return _backwards(first, keep, links.has_successor)


def retrace_return(
    reward: Float[Tensor, " T"],
    q_a: Float[Tensor, " T"],
    value: Float[Tensor, " T"],
    log_ratio: Float[Tensor, " T"],
    links: Transitions,
    *,
    trace: float,
) -> Float[Tensor, " T"]:
    """``G_t = r_t + disc (V(s_{t+1}) + lambda min(1, rho_{t+1}) (G_{t+1} - Q(s_{t+1},a_{t+1})))``.

    The lambda return of a policy other than the one that wrote the row: a trace is cut where the
    policy would hardly have taken the action. V is the policy's own mean of Q, so what the sampled
    actions add has mean 0, and the fixed point is the policy's Q for every trace.

    Args:
        reward: reward of every step, nats.
        q_a: Q of every action, nats.
        value: V(s_t) of every step under the policy, nats.
        log_ratio: ``log pi(a|s) - log behaviour(a|s)`` of every step, nats.
        links: discounts and boundaries of the steps.
        trace: lambda in [0, 1].

    Returns:
        Target for Q per step, nats; without meaning where ``can_bootstrap`` is false.

    Reference:
        Munos et al., Safe and Efficient Off-Policy Reinforcement Learning, 2016, arXiv 1606.02647.

    Example:
        >>> one, yes = torch.ones(3), torch.tensor([True, True, False])
        >>> cut = Transitions(0.5 * one, yes, yes)
        >>> retrace_return(one, 4 * one, 8 * one, 0 * one, cut, trace=1.0).tolist()
        [5.5, 5.0, 1.0]
    """
    weight = trace * log_ratio.clamp(max=0.0).exp() * links.can_bootstrap.to(value.dtype)
    beside = successor(value - weight * q_a, links.has_successor)
    keep = links.discount * successor(weight, links.has_successor)
    return _backwards(reward + links.discount * beside, keep, links.has_successor)


def discounted_sum(
    rewards: Float[Tensor, " T"], has_successor: Bool[Tensor, " T"], *, discount: float = 1.0
) -> Float[Tensor, " T"]:
    """``R_t = sum_{k>=0} discount^k r_{t+k}`` along each response.

    Args:
        rewards: per step, nats, responses laid end to end.
        has_successor: whether the next flat step belongs to the same response.
        discount: gamma in [0, 1].

    Returns:
        The return from each step on, nats.

    Example:
        >>> rewards = torch.tensor([1.0, 2.0, 4.0])
        >>> discounted_sum(rewards, torch.tensor([True, False, False]), discount=0.5).tolist()
        [2.0, 2.0, 4.0]
    """
    return _backwards(rewards, torch.full_like(rewards, discount), has_successor)


def _backwards(first: Tensor, keep: Tensor, has_successor: Tensor) -> Tensor:
    """``x_t = first_t + keep_t x_{t+1}`` along each response, from its last step on."""
    ends = torch.where(~has_successor)[0]
    lengths = ends.diff(prepend=ends.new_full((1,), -1))
    columns = [_padded(part, lengths).unbind(1)[::-1] for part in (first, keep)]
    found = [first.new_zeros(len(lengths))]
    for here, weight in zip(*columns, strict=True):
        found.append(here + weight * found[-1])
    real = torch.arange(len(found) - 1, device=ends.device) < lengths[:, None]
    return torch.stack(found[:0:-1], 1)[real]


def _padded(flat: Tensor, lengths: Tensor) -> Tensor:
    """Rows of a flat tensor, padded on the right [B, L]."""
    return torch.nn.utils.rnn.pad_sequence(list(flat.split(lengths.tolist())), batch_first=True)
