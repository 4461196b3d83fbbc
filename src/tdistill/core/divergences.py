"""The cloning family: losses between the teacher's and the student's next-token distributions."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core.projection import project
from tdistill.core.value import expectation


def forward_kl(
    teacher_log_probs: Float[Tensor, "T V"], student_log_probs: Float[Tensor, "T V"]
) -> Float[Tensor, " T"]:
    """``KL(pi* || pi)`` over the full vocabulary, nats per step.

    A token to which the teacher gives no probability contributes 0.

    Example:
        >>> import torch
        >>> half, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
        >>> forward_kl(sure, half).exp().tolist()
        [2.0]
    """
    probs = teacher_log_probs.exp()
    terms = probs * (teacher_log_probs - student_log_probs)
    return terms.masked_fill(probs == 0, 0.0).sum(-1)


def set_forward_kl(
    teacher_log_probs: Float[Tensor, " M"],
    student_log_probs: Float[Tensor, " M"],
    offsets: Int[Tensor, " R"],
) -> Float[Tensor, " R-1"]:
    """``KL(proj_p pi* || q)``, nats per step, for a student q on the members.

    With q normalised over the set this is blind to off-set mass; with q normalised over the
    vocabulary it is larger by ``-log`` of the student's set mass and pulls that mass in.

    Args:
        teacher_log_probs: teacher's members, any normalisation (projected here).
        student_log_probs: student's log-probabilities of the members, nats; states over what they
            are normalised by the caller's choice.
        offsets: rows of the sets.

    Returns:
        Divergence per step, nats.

    Example:
        >>> import torch
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> set_forward_kl(half, half - 1.0, torch.tensor([0, 2])).tolist()
        [1.0]
    """
    target = project(teacher_log_probs, offsets)
    return expectation(target - student_log_probs, target, offsets)


def cross_entropy(
    log_normaliser: Float[Tensor, " T"], q_a: Float[Tensor, " T"]
) -> Float[Tensor, " T"]:
    """``-log pi(a|s) = log sum_V exp z - z_a``, nats per step.

    Example:
        >>> cross_entropy(3.0, 2.0)
        1.0
    """
    return log_normaliser - q_a
