"""IQ-Learn on the top-p set (4.2)-(4.4), one function per term; everything is per step.

Reference: Garg et al., IQ-Learn: Inverse soft-Q Learning for Imitation, NeurIPS 2021; on the set:
Yu, Li, Zhang, Language Model Distillation: A Temporal Difference Imitation Learning Perspective,
arXiv 2505.20335.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from tdistill.core.phi import Phi


def iq_learn_reward_term(reward: Float[Tensor, " T"], phi: Phi) -> Float[Tensor, " T"]:
    """``-phi(r)``: the first expectation of (4.2), as a loss.

    Example:
        >>> iq_learn_reward_term(2.0, lambda r: r)
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


def iq_learn_nonlinear_term(
    reward: Float[Tensor, " T"], phi: Phi, weight: Float[Tensor, " T"] | float = 1.0
) -> Float[Tensor, " T"]:
    """``r - w phi(r)``: all the temporal-difference content of (4.2); ``r^2 / (4 alpha)`` in (4.4).

    Args:
        reward: implied reward, nats.
        phi: concave regulariser of the reward.
        weight: w, of phi: above 1 where phi is averaged over fewer steps than the second term.

    Returns:
        The term per step, nats.

    Example:
        >>> iq_learn_nonlinear_term(1.0, lambda r: r - r**2 / 2)
        0.5
    """
    return reward - weight * phi(reward)


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
        >>> iq_learn_loss(3.0, 2.5, 2.0, 0.9, phi=lambda r: r)
        0.5
    """
    reward = q_a - discount * next_value
    return iq_learn_reward_term(reward, phi) + iq_learn_value_term(value, next_value, discount)


def iq_learn_initial_loss(
    on_expert: Float[Tensor, " T"],
    value: Float[Tensor, " T"],
    flow: Float[Tensor, " T"],
    occupancy: Float[Tensor, " T"],
    first: Bool[Tensor, " T"],
) -> Float[Tensor, " T"]:
    """``-w phi(r)``, and ``w V(s_0)`` at the first step: the second term at the initial states.

    ``(1 - gamma) E[V(s_0)]`` is the telescoped second expectation of (4.2) under the discounted
    occupancy. A finite response has the occupancy ``gamma^t / sum_k gamma^k``, so both terms carry
    its weights ``w_t`` and the sum over a response is ``V(s_0) - sum_t gamma^t phi(r_t)`` times a
    constant. Weights that are equal over the steps would not telescope: raising every Q by the same
    amount would lower the loss without bound. As gamma -> 1 the weights become equal.

    Args:
        on_expert: (4.2) in its cancelled form, nats.
        value: V(s), nats.
        flow: ``V(s) - discount V(s')``, nats.
        occupancy: w, see :func:`tdistill.core.discounted_occupancy`.
        first: where a response begins.

    Returns:
        Loss per step, nats.

    Example:
        >>> iq_learn_initial_loss(3.0, 5.0, 2.0, 1.0, True)
        6.0
        >>> iq_learn_initial_loss(3.0, 5.0, 2.0, 1.0, False)
        1.0
    """
    return occupancy * (on_expert - flow + first * value)
