"""Policy gradient on sampled responses: the clipped surrogate."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def clipped_policy_loss(
    log_ratio: Float[Tensor, " T"], advantage: Float[Tensor, " T"], *, clip: float | None
) -> Float[Tensor, " T"]:
    """``-min(rho A, clip(rho, 1 - e, 1 + e) A)`` with ``rho = pi / behaviour``.

    Its gradient is ``-rho A grad log pi`` where the clip does not bind: the policy gradient,
    weighted by importance.

    Args:
        log_ratio: ``log pi(a|s) - log behaviour(a|s)``, nats; carries the gradient.
        advantage: what the step is worth; a constant.
        clip: e, or None for no clip.

    Returns:
        Loss per step.

    Reference:
        Schulman et al., Proximal Policy Optimization Algorithms, 2017, arXiv 1707.06347, eq. 7.

    Example:
        >>> ratio, advantage = torch.tensor([2.0, 2.0]).log(), torch.tensor([1.0, -1.0])
        >>> tuple(round(x, 3) for x in clipped_policy_loss(ratio, advantage, clip=0.2).tolist())
        (-1.2, 2.0)
    """
    ratio = log_ratio.exp()
    if clip is None:
        return -ratio * advantage
    bounded = ratio.clamp(1.0 - clip, 1.0 + clip)
    return -torch.minimum(ratio * advantage, bounded * advantage)
