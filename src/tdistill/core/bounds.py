"""What restricting actions to the top-p set can cost: kappa (Prop 2), the per-state bound (3.3)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core.returns import discounted_sum
from tdistill.core.top_p import check_top_p
from tdistill.core.transitions import successor, transitions
from tdistill.errors import InvalidValueError


def kappa(set_top_p: float, discount: float) -> float:
    """``kappa(p) = -gamma / (1 - gamma) log p``, the uniform bound of Prop 2 and 4.

    Args:
        set_top_p: mass p in (0, 1].
        discount: gamma in [0, 1).

    Returns:
        Bound on the loss of Q, nats.

    Raises:
        InvalidValueError: for p or gamma out of range.

    Example:
        >>> round(kappa(0.8, 0.99), 1)
        22.1
    """
    check_top_p(set_top_p)
    if not 0.0 <= discount < 1.0:
        raise InvalidValueError(f"discount: expected a value in [0, 1), found {discount}")
    return discount / (1.0 - discount) * abs(math.log(set_top_p))


def sampled_gap_bound(
    neg_log_mass: Float[Tensor, " T"],
    lengths: Int[Tensor, " B"],
    *,
    discount: float,
    unseen: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " T"]:
    """``sum_{k>=1} gamma^k (-log m_p(s_{t+k}))`` along each sampled response (3.3).

    On responses drawn from proj_p of the teacher this is an unbiased draw of the per-state bound,
    up to what a cut response does not show, which ``unseen`` stands for.

    Args:
        neg_log_mass: ``-log m_p`` of the set of each step, nats.
        lengths: steps of each response, laid end to end.
        discount: gamma in [0, 1].
        unseen: the discounted sum from the state behind each response's last step on, nats: 0 where
            it ended, see :func:`loss_of_unseen_steps` where it was cut. None: 0 for all.

    Returns:
        The sampled bound at every step, nats.

    Example:
        >>> loss, one = torch.tensor([9.0, 1.0, 2.0]), torch.tensor([3])
        >>> sampled_gap_bound(loss, one, discount=0.5).tolist()
        [1.0, 1.0, 0.0]
        >>> sampled_gap_bound(loss, one, discount=0.5, unseen=torch.tensor([8.0])).tolist()
        [2.0, 3.0, 4.0]
    """
    if lengths.numel() == 0:
        return torch.zeros_like(neg_log_mass)
    follows = transitions(lengths, torch.ones_like(lengths).bool(), discount=1.0).has_successor
    lost = discounted_sum(neg_log_mass, follows, discount=discount)
    seen = discount * successor(lost, follows)
    if unseen is None:
        return seen
    left = discounted_sum(torch.ones_like(neg_log_mass), follows)  # steps to the end
    return seen + discount**left * unseen.repeat_interleave(lengths)


def loss_of_unseen_steps(mean: float, ending: float, *, discount: float) -> float:
    """``sum_{k>=0} (gamma (1 - h))^k c``: what is lost from the state behind a cut on.

    The response goes on at the mean loss c, and every step ends it with probability h.

    Args:
        mean: c, of ``-log m_p`` over the steps that were seen, nats.
        ending: h in [0, 1]: responses that ended over steps, which is its estimate of most
            likelihood where others were cut.
        discount: gamma in [0, 1].

    Returns:
        Nats; infinite where neither the discount nor an end bounds the sum.

    Example:
        >>> loss_of_unseen_steps(0.2, 0.0, discount=0.5), loss_of_unseen_steps(0.2, 0.1, discount=1)
        (0.4, 2.0)
    """
    going_on = discount * (1.0 - ending)
    return mean / (1.0 - going_on) if going_on < 1.0 else (math.inf if mean > 0.0 else 0.0)
