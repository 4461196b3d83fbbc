"""Students that cannot be the teacher: policies whose states share rows, and the best of them.

A class is a partition of the states; a policy of the class has one row of scores for each part. The
aim is V^pi(s_0), the value of the empty response, with d^pi the discounted visits from there.

What (9.3) is worth in such a class. Let Q = Q^pi, and for a policy p of the class
A_p(s) = E_p[Q - log p] - V^pi(s), which is 0 for p = pi. Then, exactly (performance difference),

    V^p(s_0) - V^pi(s_0) = sum_s d^p(s) A_p(s),    A_p = KL(pi || pi+) - KL(p || pi+),

so the target pi+ of (9.3) must be projected by the reverse KL, weighted with the visits of the NEW
policy. Those are unknown; :func:`tied_step` takes the old ones, d^pi. It follows:

1. Not even the best of the class need raise V in every state: a shared row may serve one state
   against another. Nor does a step of all rows at once always raise V(s_0): rows improve for the
   visits that another row then takes away (tests/test_tabular_tied.py has both by hand).
2. Rows none of which can be visited after another, once each in a response: their d^p is d^pi, and
   A_p is 0 elsewhere. So the step moves them to their joint maximum of V(s_0): it never lowers it.
   One row at a time, where no response visits it twice, is coordinate ascent.
3. Any rows, a share x of the step, p = (1 - x) pi + x pi': A_p is concave in p, so A_p >= x A_pi'.
   With d^p - d^pi = x gamma (I - gamma P_p^T)^-1 (P_pi' - P_pi)^T d^pi the gain is at least
   x (L - x C), L = sum_s d^pi(s) A_pi'(s) >= 0, C = H |A_pi'|_max |gamma (P_pi' - P_pi)^T d^pi|_1,
   H the horizon. The share :func:`safe_share` gains x L / 2 or more: V(s_0) rises unless L = 0.
4. The gradient of sum_s d^pi(s) A_p(s) at p = pi, which is minus that of (9.5), is the gradient of
   V^pi(s_0) in any parameters: so a small enough step on (9.5) does not lower it either.

Reference: Kakade and Langford, Approximately Optimal Approximate Reinforcement Learning, 2002.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tdistill.errors import InvalidValueError
from tdistill.tabular.imitation import state_kl
from tdistill.tabular.mdp import Sets, Table, TokenMDP
from tdistill.tabular.programming import (
    occupancy,
    policy_evaluation,
    soft_policy,
    soft_return,
)

Rows = Float64[Tensor, "C V"]


@dataclass(frozen=True, eq=False)
class TiedStates:
    """A student class: states of one part share a row of scores.

    Attributes:
        part: part of every state, numbered from 0 without gaps.
        allowed: the action sets; a policy is its row, projected on the set of the state (2.3).

    Example:
        >>> tied = TiedStates(torch.tensor([0, 0]), torch.tensor([[True, True], [True, False]]))
        >>> tied.policy(torch.zeros(1, 2).double()).tolist()
        [[0.5, 0.5], [1.0, 0.0]]
    """

    part: Int64[Tensor, " S"]
    allowed: Sets

    @property
    def num_parts(self) -> int:
        """Number of rows."""
        return int(self.part.max()) + 1

    def policy(self, scores: Rows) -> Table:
        """The policy of a row of scores, in nats, for each part."""
        return soft_policy(scores[self.part], self.allowed)

    def starts(self, count: int, generator: torch.Generator) -> Float64[Tensor, "N C V"]:
        """Scores to start a search from: zeros, then normal ones of growing scale."""
        shape = (count, self.num_parts, self.allowed.shape[1])
        scale = torch.linspace(0.0, 3.0, count, dtype=torch.float64)[:, None, None]
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def best_tied_policy(mdp: TokenMDP, tied: TiedStates, starts: Float64[Tensor, "N C V"]) -> Table:
    """The policy of the class with the largest V(s_0), the best of one local search a start.

    V is not concave in the scores: which of the teacher's ways to give up is a choice of basin.

    Args:
        mdp: the MDP, with the reward of :func:`with_log_teacher` for the least divergence.
        tied: the class.
        starts: scores of every start.

    Returns:
        The policy.

    Example:
        >>> mdp = TokenMDP(torch.tensor([[-1, -1]]), torch.tensor([[0.0, 1.0]]).double(), 1.0)
        >>> tied = TiedStates(torch.tensor([0]), mdp.full_vocabulary)
        >>> best = best_tied_policy(mdp, tied, torch.zeros(1, 1, 2).double())
        >>> (best[0, 1] / best[0, 0]).log().round(decimals=6)
        tensor(1., dtype=torch.float64)
    """
    ends = [minimise(lambda x: -soft_return(mdp, tied.policy(x))[0], start) for start in starts]
    policies = [tied.policy(scores) for scores in ends]
    return max(policies, key=lambda policy: float(soft_return(mdp, policy)[0]))


def best_cloner(mdp: TokenMDP, teacher: Table, tied: TiedStates) -> Table:
    """The policy of the class least in sum_s d^T(s) KL(T || pi): what kd ends at.

    Convex in the scores, so one search finds it.

    Args:
        mdp: successors and discount; the reward plays no part.
        teacher: T, 0 outside the sets of the class.
        tied: the class.

    Returns:
        The policy.

    Example:
        >>> mdp = TokenMDP(torch.tensor([[1, 1], [-1, -1]]), torch.zeros(2, 2).double(), 1.0)
        >>> tied = TiedStates(torch.tensor([0, 0]), mdp.full_vocabulary)
        >>> teacher = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).double()
        >>> best_cloner(mdp, teacher, tied).round(decimals=6).tolist()
        [[0.7, 0.3], [0.7, 0.3]]
    """
    visits = occupancy(mdp, teacher)
    start = teacher.new_zeros(tied.num_parts, teacher.shape[1])
    scores = minimise(lambda x: (visits * state_kl(teacher, tied.policy(x))).sum(), start)
    return tied.policy(scores)


def tied_step(
    mdp: TokenMDP,
    policy: Table,
    tied: TiedStates,
    *,
    moved: Bool[Tensor, " C"] | None = None,
    share: float = 1.0,
) -> Table:
    """(9.3) inside a class: the reverse projection of pi+ with the visits of pi as weights.

    The least sum over a part of d^pi(s) KL(row || pi+(.|s)) is row ~ exp E_{s ~ d^pi}[Q^pi(s,.)],
    the weighted geometric mean of the targets. The module says when V(s_0) cannot fall.

    Args:
        mdp: the MDP, with the reward of :func:`with_log_teacher` for (9.3).
        policy: pi, of the class.
        tied: the class; the states of a part must have one action set.
        moved: the parts that take the step; all if left out. A part without visits never does.
        share: x in [0, 1]; the result is (1 - x) pi + x times the projection.

    Returns:
        The new policy, of the class.

    Raises:
        InvalidValueError: where the states of a part have different action sets.

    Example:
        >>> mdp = TokenMDP(torch.tensor([[-1, -1]]), torch.tensor([[2.0, 1.0]]).double().log(), 1.0)
        >>> tied = TiedStates(torch.tensor([0]), mdp.full_vocabulary)
        >>> step = tied_step(mdp, torch.tensor([[0.5, 0.5]]).double(), tied)
        >>> step.mul(3).round(decimals=6).tolist()
        [[2.0, 1.0]]
    """
    members = torch.nn.functional.one_hot(tied.part, tied.num_parts).T.to(policy)
    of_part = (members @ tied.allowed.to(policy))[tied.part]
    if not (of_part == members.sum(1)[tied.part, None])[tied.allowed].all():
        raise InvalidValueError("allowed: expected one action set for all states of a part")
    weight = members * occupancy(mdp, policy)
    visits = weight.sum(1)
    mean = weight @ policy_evaluation(mdp, policy) / visits.where(visits > 0, 1.0)[:, None]
    moves = visits > 0 if moved is None else moved & (visits > 0)
    projected = tied.policy(mean).where(moves[tied.part, None], policy)
    return torch.lerp(policy, projected, share)


def safe_share(mdp: TokenMDP, policy: Table, target: Table) -> float:
    """The share of a step from pi towards a projection of (9.3) that cannot lower V(s_0).

    ``min(1, L / 2 C)``, of the module's third statement.

    Args:
        mdp: the MDP.
        policy: pi.
        target: where :func:`tied_step` leads with share 1.

    Returns:
        The share x; the value of (1 - x) pi + x target is at least that of pi.

    Example:
        >>> mdp = TokenMDP(torch.tensor([[-1, -1]]), torch.tensor([[0.0, 1.0]]).double(), 1.0)
        >>> safe_share(mdp, torch.tensor([[0.5, 0.5]]).double(), mdp.reward.softmax(1))
        1.0
    """
    visits = occupancy(mdp, policy)
    action_value = policy_evaluation(mdp, policy)
    advantage = (target * action_value + torch.special.entr(target)).sum(1)
    advantage = advantage - soft_return(mdp, policy)
    flow = (visits[:, None] * (target - policy) * mdp.step_discount).flatten()
    moved = torch.zeros_like(visits).index_add(0, mdp.next_state.clamp(min=0).flatten(), flow)
    loss = mdp.horizon * float(advantage.abs().max() * moved.abs().sum())
    gain = float(visits @ advantage)
    return 1.0 if gain >= 2.0 * loss else max(gain, 0.0) / (2.0 * loss)


def minimise(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    iterations: int = 500,
    tolerance: float = 3e-8,
) -> Tensor:
    """A local minimum, by LBFGS in float64, until no partial derivative is above the tolerance.

    A loss whose infimum lies at infinity, as that of a token without mass, takes all iterations at
    much smaller tolerances.

    Example:
        >>> minimise(lambda x: (x - 2).square().sum(), torch.zeros(1).double()).round(decimals=6)
        tensor([2.], dtype=torch.float64)
    """
    found = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [found],
        max_iter=iterations,
        max_eval=10 * iterations,
        history_size=50,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = function(found)
        value.backward()
        return value

    optimizer.step(closure)
    return found.detach()
