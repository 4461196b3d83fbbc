"""Values of what the student can carry through: the top-p MDP of method.md, section 9.

The reward is ``log T(a|s)``, T the projected teacher, so a value is minus the student's own
divergence from the teacher to go. ``g(s,a) >= 0`` is the discounted cost to go after an action.
Its targets are the returns of :mod:`tdistill.core.returns` with reward 0, ``-c(s)`` in the place
of the policy's log-probability and :func:`state_cost` as the value: the cost of a state is paid
when it is visited, and the value of the action that led there holds it, discounted.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core.divergences import reverse_kl_terms
from tdistill.core.projection import project
from tdistill.core.segments import row_index, segment_sum
from tdistill.core.value import expectation


def state_cost(
    cost: Float[Tensor, " T"],
    to_go: Float[Tensor, " M"],
    log_policy: Float[Tensor, " M"],
    offsets: Int[Tensor, " R"],
) -> Float[Tensor, " T"]:
    """``-V(s) = c(s) + E_{a ~ pi}[g(s,a)]``, the bracket of (9.4).

    Args:
        cost: c(s), the student's divergence from the teacher at the state, nats.
        to_go: g(s,a) of the set members, nats.
        log_policy: log-probabilities on the set of the policy that goes on, nats.
        offsets: rows of the sets.

    Returns:
        Cost of the state and of all that follows, nats.

    Example:
        >>> sure = torch.tensor([0.0, float("-inf")])
        >>> state_cost(torch.ones(1), torch.tensor([2.0, 7.0]), sure, torch.tensor([0, 2]))
        tensor([3.])
    """
    return cost + expectation(to_go, log_policy, offsets)


def tilt(
    log_policy: Float[Tensor, " M"],
    to_go: Float[Tensor, " M"],
    offsets: Int[Tensor, " R"],
    *,
    strength: float = 1.0,
) -> Float[Tensor, " M"]:
    """``log q``, ``q(a|s) = T(a|s) exp(-beta g(s,a)) / Z(s)``: (9.3), and (9.6) with its beta.

    Args:
        log_policy: log T on the set up to a constant per state, nats.
        to_go: g(s,a), nats; a constant per state changes nothing.
        offsets: rows of the sets.
        strength: beta; 0 gives T.

    Returns:
        Log-probabilities that sum to one within each row, nats.

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> cost = torch.tensor([0.0, 3.0]).log1p()
        >>> tilt(half, cost, torch.tensor([0, 2])).exp()
        tensor([0.8000, 0.2000])
    """
    return project(log_policy - strength * to_go, offsets)


def advantage(
    to_go: Float[Tensor, " M"], log_policy: Float[Tensor, " M"], offsets: Int[Tensor, " R"]
) -> Float[Tensor, " M"]:
    """``g(s,a) - E_{a' ~ T}[g(s,a')]``: what an action costs beside the others of its state.

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> advantage(torch.tensor([1.0, 3.0]), half, torch.tensor([0, 2])).tolist()
        [-1.0, 1.0]
    """
    mean = expectation(to_go, log_policy, offsets)
    return to_go - mean[row_index(offsets, len(to_go))]


def token_sums(
    values: Float[Tensor, " M"],
    weights: Float[Tensor, " M"],
    ids: Int[Tensor, " M"],
    vocabulary_size: int,
) -> tuple[Float[Tensor, " V"], Float[Tensor, " V"]]:
    """Weighted sums of values by token, and the sums of the weights: their ratio is a mean.

    Example:
        >>> one = torch.ones(3)
        >>> token_sums(torch.tensor([1.0, 2.0, 5.0]), one, torch.tensor([0, 1, 1]), 2)
        (tensor([1., 7.]), tensor([1., 2.]))
    """
    none, weights = values.new_zeros(vocabulary_size), weights.to(values.dtype)
    return none.index_add(0, ids, weights * values), none.index_add(0, ids, weights)


def soft_actor_terms(
    teacher: Float[Tensor, " M"], student: Float[Tensor, " M"], to_go: Float[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """Terms ``pi (log pi - log T + g)`` of the actor's loss (9.5); all actions are counted.

    Their sum over a state is ``KL(pi || T exp(-g) / Z)`` up to a constant; with g = 0 it is the
    reverse KL.

    Args:
        teacher: log T of the outcomes, nats.
        student: log pi of the outcomes, nats; sums to one over them.
        to_go: g of the outcomes, nats, a constant.

    Returns:
        Terms whose sum over the outcomes is the loss of the state, nats.

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> soft_actor_terms(half, half, torch.tensor([1.0, 3.0])).sum().item()
        2.0
    """
    return reverse_kl_terms(teacher, student) + student.exp() * to_go


def spread(
    to_go: Float[Tensor, " M"], log_policy: Float[Tensor, " M"], offsets: Int[Tensor, " R"]
) -> Float[Tensor, " T"]:
    """Standard deviation of g within a set under T [T], nats: how much there is to choose.

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> spread(torch.tensor([1.0, 3.0]), half, torch.tensor([0, 2])).tolist()
        [1.0]
    """
    centred = advantage(to_go, log_policy, offsets)
    return segment_sum(log_policy.exp() * centred.square(), offsets).sqrt()
