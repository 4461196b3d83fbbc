"""Imitation as a soft MDP (section 9): the reward of a token is the teacher's log-probability.

Write T for proj_p pi*, and A_p for where it is positive. Everything that :mod:`programming` says of
a soft MDP then holds of imitation: :func:`tdistill.tabular.soft_return` is (9.1),
:func:`tdistill.tabular.policy_evaluation` is (9.2) on A_p, the teacher is soft-optimal and its
value is 0 in every state.
"""

from __future__ import annotations

from dataclasses import replace

from tdistill.tabular.mdp import Table, TokenMDP, Values
from tdistill.tabular.programming import cost_to_go


def with_log_teacher(mdp: TokenMDP, teacher: Table) -> TokenMDP:
    """The same MDP with reward log T(a|s) on the teacher's sets, and 0 where no policy may go.

    Args:
        mdp: successors and discount; its reward is not used.
        teacher: T, 0 outside the sets.

    Returns:
        The MDP in which (9.1) and (9.2) are the ordinary soft values.

    Example:
        >>> import torch
        >>> loop = TokenMDP(torch.tensor([[0, 0]]), torch.zeros(1, 2).double(), 0.5)
        >>> with_log_teacher(loop, torch.tensor([[1.0, 0.0]]).double()).reward.tolist()
        [[0.0, 0.0]]
    """
    return replace(mdp, reward=teacher.where(teacher > 0, 1.0).log())


def state_kl(policy: Table, other: Table) -> Values:
    """KL(pi(.|s) || other(.|s)) of every state in nats, with a finite gradient where pi is 0.

    Example:
        >>> import torch
        >>> sure, half = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.5, 0.5]]).double()
        >>> state_kl(sure, half).exp().tolist()
        [2.0]
    """
    inside = policy > 0
    return (policy * (policy.where(inside, 1.0) / other.where(inside, 1.0)).log()).sum(1)


def tilted(teacher: Table, price: Table) -> Table:
    """T(a|s) exp(-price(s,a)) / Z(s): (9.3) at the price g of (9.4), (9.6) at beta J.

    Example:
        >>> import torch
        >>> half, price = torch.tensor([[0.5, 0.5]]), torch.tensor([[3.0, 1.0]]).log()
        >>> tilted(half.double(), price.double()).mul(4).round(decimals=6).tolist()
        [[1.0, 3.0]]
    """
    return (teacher.log() - price).softmax(1)


def soft_improvement(mdp: TokenMDP, teacher: Table, policy: Table) -> Table:
    """pi+(a|s) = T(a|s) exp(discount V^pi(s')) / Z(s), (9.3), free in every state.

    It never lowers V, in any state: pi+(.|s) maximises E_p[Q^pi - log p] over all p, so
    B^{pi+} V^pi >= V^pi; B^{pi+} is monotone and a contraction, hence V^{pi+} >= V^pi. On a tree
    its repetition ends at T after as many steps as the tree is deep. A class that ties states
    together needs more care: :mod:`tdistill.tabular.tied`.

    Args:
        mdp: successors and discount.
        teacher: T, 0 outside the sets.
        policy: pi, 0 outside the sets.

    Returns:
        The improved policy.

    Example:
        >>> import torch
        >>> mdp = TokenMDP(torch.tensor([[1, -1], [-1, -1]]), torch.zeros(2, 2).double(), 0.5)
        >>> teacher = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).double()
        >>> policy = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).double()  # KL log 4 in state 1
        >>> soft_improvement(mdp, teacher, policy).mul(12).round(decimals=9).tolist()
        [[4.0, 8.0], [3.0, 9.0]]
    """
    return tilted(teacher, cost_to_go(mdp, policy, state_kl(policy, teacher)))
