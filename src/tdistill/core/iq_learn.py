"""IQ-Learn on the top-p set (4.2)-(4.4), one function per term; everything is per step.

Reference: Garg et al., IQ-Learn: Inverse soft-Q Learning for Imitation, NeurIPS 2021; on the set:
Yu, Li, Zhang, Language Model Distillation: A Temporal Difference Imitation Learning Perspective,
arXiv 2505.20335.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Phi = Callable[[Tensor], Tensor]


def identity_phi(x: Float[Tensor, " *T"]) -> Float[Tensor, " *T"]:
    """``phi(x) = x``: no regularisation of the reward; (4.2) becomes cloning on the set.

    Example:
        >>> identity_phi(3.0)
        3.0
    """
    return x


def chi_square_phi(x: Float[Tensor, " *T"], *, alpha: float) -> Float[Tensor, " *T"]:
    """``phi(x) = x - x^2 / (4 alpha)`` (4.3).

    Args:
        x: implied reward, nats.
        alpha: strength > 0; smaller pulls the reward harder towards 0 (the paper: 0.1).

    Returns:
        phi of every reward.

    Example:
        >>> chi_square_phi(1.0, alpha=0.5)
        0.5
    """
    return x - x**2 / (4.0 * alpha)


def iq_learn_reward_term(reward: Float[Tensor, " T"], phi: Phi) -> Float[Tensor, " T"]:
    """``-phi(r)``: the first expectation of (4.2), as a loss.

    Example:
        >>> iq_learn_reward_term(2.0, identity_phi)
        -2.0
    """
    return -phi(reward)


def iq_learn_value_term(
    value: Float[Tensor, " T"], next_value: Float[Tensor, " T"], discount: Float[Tensor, " T"]
) -> Float[Tensor, " T"]:
    """``V_p(s) - discount V_p(s')``: the second expectation of (4.2), as a loss.

    Example:
        >>> iq_learn_value_term(3.0, 2.0, 0.5)
        2.0
    """
    return value - discount * next_value


def iq_learn_linear_term(
    value: Float[Tensor, " T"], q_a: Float[Tensor, " T"]
) -> Float[Tensor, " T"]:
    """``V_p(s) - Q(s,a)``: what (4.2) is for the identity phi, at every discount; (4.4) left part.

    The discounted values of the two expectations cancel, so this is ``-log proj_p pi_Q(a|s)``.

    Args:
        value: V_p(s), or the full-vocabulary value for the normaliser ``vocabulary``, nats.
        q_a: Q of the taken action, or its expectation under the teacher, nats.

    Returns:
        Cloning loss per step, nats.

    Example:
        >>> iq_learn_linear_term(3.0, 2.5)
        0.5
    """
    return value - q_a


def iq_learn_nonlinear_term(reward: Float[Tensor, " T"], phi: Phi) -> Float[Tensor, " T"]:
    """``r - phi(r)``: all the temporal-difference content of (4.2); ``r^2 / (4 alpha)`` in (4.4).

    Example:
        >>> iq_learn_nonlinear_term(1.0, lambda r: chi_square_phi(r, alpha=0.5))
        0.5
    """
    return reward - phi(reward)


def iq_learn_loss(
    value: Float[Tensor, " T"],
    q_a: Float[Tensor, " T"],
    next_value: Float[Tensor, " T"],
    discount: Float[Tensor, " T"],
    *,
    phi: Phi,
) -> Float[Tensor, " T"]:
    """The negative of (4.2) per step, as written there; equal to (4.4) for the chi-square phi.

    Args:
        value: V_p(s), nats.
        q_a: Q of the taken action, nats.
        next_value: V_p(s'), nats.
        discount: gamma, or 0 where the response ended.
        phi: concave regulariser of the implied reward.

    Returns:
        Loss per step, nats.

    Example:
        >>> iq_learn_loss(3.0, 2.5, 2.0, 0.9, phi=identity_phi)
        0.5
    """
    reward = q_a - discount * next_value
    return iq_learn_reward_term(reward, phi) + iq_learn_value_term(value, next_value, discount)
