"""Exact dynamic programming in float64 on small token MDPs: the oracle of the theory (section 3).

Every function is plain tensor algebra, so gradients flow through scores, policies and rewards, and
an objective can be minimised on the same MDP that this module solves exactly. With the full
vocabulary as the set, Q_p* of (2.4) is the ordinary soft-optimal Q*.

Reference: Yu, Li, Zhang, "Language Model Distillation: A Temporal Difference Imitation Learning
Perspective" (arXiv 2505.20335), propositions 1 to 4.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tdistill.core import implied_reward, soft_bellman_backup, top_p_sets
from tdistill.tabular.mdp import TERMINAL, Sets, Table, TokenMDP, Values


def with_teacher(mdp: TokenMDP, teacher_scores: Table) -> TokenMDP:
    """The same MDP with the reward whose soft-optimal Q is the teacher's scores.

    r(s,a) = Q(s,a) - gamma V(s'), (4.1) over the full vocabulary: any finite scores are
    soft-optimal for exactly one reward.

    Args:
        mdp: successors and discount; its reward is not used.
        teacher_scores: teacher logits in nats, any shift.

    Returns:
        The MDP with the implied reward.

    Example:
        >>> chain = TokenMDP(torch.tensor([[1, -1], [-1, -1]]), torch.zeros(2, 2).double(), 0.9)
        >>> scores = torch.tensor([[3.0, 1.0], [2.0, -1.0]]).double()
        >>> taught = with_teacher(chain, scores)
        >>> torch.allclose(soft_optimal_q(taught, chain.full_vocabulary), scores)
        True
    """
    next_value = successor_values(mdp, state_values(teacher_scores, mdp.full_vocabulary))
    reward = implied_reward(teacher_scores, next_value, mdp.step_discount)
    return replace(mdp, reward=reward)


def successor_values(mdp: TokenMDP, values: Values) -> Table:
    """Value of the successor of every state and token, 0 where the episode ends.

    Example:
        >>> mdp = TokenMDP(torch.tensor([[1, -1], [-1, -1]]), torch.zeros(2, 2).double(), 0.9)
        >>> successor_values(mdp, torch.tensor([5.0, 7.0]).double()).tolist()
        [[7.0, 0.0], [0.0, 0.0]]
    """
    return values[mdp.next_state.clamp(min=0)].where(mdp.next_state != TERMINAL, 0.0)


def state_values(scores: Table, allowed: Sets) -> Values:
    """V_p(s) = log sum_{a in A_p(s)} exp Q(s,a), (3.2), on a dense mask.

    Args:
        scores: Q in nats.
        allowed: the action sets.

    Returns:
        The value of every state in nats.

    Example:
        >>> scores = torch.zeros(1, 3, dtype=torch.float64)
        >>> state_values(scores, torch.tensor([[True, False, True]])).exp()
        tensor([2.], dtype=torch.float64)
    """
    return scores.masked_fill(~allowed, float("-inf")).logsumexp(1)


def soft_policy(scores: Table, allowed: Sets) -> Table:
    """pi(a|s) = exp(Q(s,a) - V_p(s)) on the sets and 0 elsewhere, at temperature 1.

    On the full vocabulary and with Q = Q* this is the teacher pi* of propositions 2 to 4.

    Example:
        >>> scores = torch.zeros(1, 3, dtype=torch.float64)
        >>> soft_policy(scores, torch.tensor([[True, False, True]])).tolist()
        [[0.5, 0.0, 0.5]]
    """
    return scores.masked_fill(~allowed, float("-inf")).softmax(1)


def top_p_mask(policy: Table, set_top_p: float, *, max_size: int | None = None) -> Sets:
    """A_p(s) of (2.1) as a dense mask.

    Args:
        policy: teacher probabilities over the full vocabulary.
        set_top_p: mass p in (0, 1].
        max_size: hard cap on the members of a set. Where it binds the set holds less than p and
            the bounds by kappa(p) do not apply; (3.3) does.

    Returns:
        True for the members.

    Raises:
        InvalidValueError: for p outside (0, 1] or a cap below 1.

    Example:
        >>> policy = torch.tensor([[0.125, 0.5, 0.125, 0.25]], dtype=torch.float64)
        >>> top_p_mask(policy, 0.7).tolist()
        [[False, True, False, True]]
    """
    sets = top_p_sets(policy.log(), set_top_p, max_size=max_size)
    allowed = torch.zeros_like(policy, dtype=torch.bool)
    allowed[sets.step, sets.ids] = True
    return allowed


def project_policy(policy: Table, allowed: Sets) -> Table:
    """proj_p pi (a|s) = pi(a|s) / m_p(s) on the sets and 0 elsewhere, (2.3).

    Example:
        >>> policy = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
        >>> project_policy(policy, torch.tensor([[True, True, False]])).tolist()
        [[0.5, 0.5, 0.0]]
    """
    kept = policy * allowed
    return kept / kept.sum(1, keepdim=True)


def soft_operator(mdp: TokenMDP, scores: Table, policy: Table) -> Table:
    """(B^pi Q)(s,a) = r(s,a) + gamma E_{a' ~ pi}[Q(s',a') - log pi(a'|s')], (3.1).

    B_p^pi is this operator at the projected policy: ``project_policy(policy, allowed)``.

    Args:
        mdp: the MDP.
        scores: Q in nats; only its values where the policy is positive count.
        policy: the policy followed from the next state on.

    Returns:
        The backed-up Q in nats, for every token, also outside the sets.

    Example:
        >>> loop = TokenMDP(torch.tensor([[0, 0]]), torch.zeros(1, 2).double(), 0.5)
        >>> uniform = torch.full((1, 2), 0.5, dtype=torch.float64)
        >>> soft_operator(loop, uniform.log(), uniform).tolist()
        [[0.0, 0.0]]
    """
    value = (policy * scores + _surprise(policy)).sum(1)
    return soft_bellman_backup(mdp.reward, successor_values(mdp, value), mdp.step_discount)


def policy_evaluation(mdp: TokenMDP, policy: Table) -> Table:
    """Q^pi, the fixed point of (3.1) at a fixed policy, by one linear solve.

    Q^{proj_p pi*} of propositions 2 and 3 is its value at the projected teacher.

    Args:
        mdp: the MDP.
        policy: the policy, 0 outside its action sets.

    Returns:
        Q in nats, for every token, also outside the sets.

    Example:
        >>> loop = TokenMDP(torch.tensor([[0, 0]]), torch.zeros(1, 2).double(), 0.5)
        >>> policy_evaluation(loop, torch.tensor([[1.0, 0.0]], dtype=torch.float64)).tolist()
        [[0.0, 0.0]]
    """
    value = soft_return(mdp, policy)
    return soft_bellman_backup(mdp.reward, successor_values(mdp, value), mdp.step_discount)


def soft_return(mdp: TokenMDP, policy: Table) -> Values:
    """V^pi(s) = E_pi[sum_{k>=0} gamma^k (r - log pi)(s_{t+k}, a_{t+k})] = E_pi[Q^pi - log pi].

    With the reward :func:`tdistill.tabular.with_log_teacher` it is (9.1), minus the discounted
    reverse KL of whole responses.

    Args:
        mdp: the MDP.
        policy: the policy, 0 outside its action sets.

    Returns:
        The value of every state in nats.

    Example:
        >>> loop = TokenMDP(torch.tensor([[0, 0]]), torch.zeros(1, 2).double(), 0.5)
        >>> soft_return(loop, torch.full((1, 2), 0.5).double()).exp().round(decimals=9).tolist()
        [4.0]
    """
    return expected_sum(mdp, policy, (policy * mdp.reward + _surprise(policy)).sum(1))


def soft_optimal_q(mdp: TokenMDP, allowed: Sets) -> Table:
    """Q_p*, the soft-optimal Q of the MDP limited to the action sets (2.4), by policy iteration.

    Each step evaluates a policy exactly and takes the soft policy of the result; the values rise to
    the fixed point Q = r + gamma V_p(s') quadratically, where value iteration gains only a factor
    gamma a step.

    Args:
        mdp: the MDP.
        allowed: the action sets; the full vocabulary gives Q*.

    Returns:
        Q in nats, for every token, also outside the sets, to a relative 1e-14 of the horizon.

    Example:
        >>> loop = TokenMDP(torch.tensor([[0, 0]]), torch.zeros(1, 2).double(), 0.5)
        >>> soft_optimal_q(loop, loop.full_vocabulary).exp().round(decimals=9).tolist()
        [[2.0, 2.0]]
    """
    rounding = 64 * torch.finfo(torch.float64).eps * mdp.horizon
    scores, change = mdp.reward, float("inf")
    while change > rounding * (1 + float(scores.abs().max())):
        previous, scores = scores, policy_evaluation(mdp, soft_policy(scores, allowed))
        change = float((scores - previous).abs().max())
    return scores


def per_state_gap(mdp: TokenMDP, policy: Table, allowed: Sets) -> Table:
    """E_{proj_p pi*}[sum_{k>=1} gamma^k (-log m_p(s_{t+k}))], the right side of (3.3), exactly.

    Args:
        mdp: successors and discount; the reward plays no part.
        policy: teacher probabilities over the full vocabulary.
        allowed: the action sets, with m_p the teacher's mass on them.

    Returns:
        The gap Q*(s,a) - Q^{proj_p pi*}(s,a) in nats, never negative.

    Example:
        >>> loop = TokenMDP(torch.tensor([[0, 0]]), torch.zeros(1, 2).double(), 0.5)
        >>> uniform = torch.full((1, 2), 0.5, dtype=torch.float64)
        >>> gap = per_state_gap(loop, uniform, torch.tensor([[True, False]]))
        >>> gap.exp().round(decimals=9).tolist()
        [[2.0, 2.0]]
    """
    left_out = (policy * ~allowed).sum(1)
    return cost_to_go(mdp, project_policy(policy, allowed), -torch.log1p(-left_out))


def cost_to_go(mdp: TokenMDP, policy: Table, cost: Values) -> Table:
    """g(s,a) = discount [c(s') + E_{a' ~ pi} g(s',a')], the fixed point of (9.4): what follows a.

    With c = KL(pi || T) it is -discount V^pi(s') of (9.1); with pi = T and c the forward KL it is J
    of (9.6); with c = -log m_p it is (3.3).

    Args:
        mdp: successors and discount; the reward plays no part.
        policy: the policy followed from the next state on.
        cost: c, nats a state.

    Returns:
        The discounted cost after every state and token in nats, 0 where the episode ends.

    Example:
        >>> mdp = TokenMDP(torch.tensor([[1, -1], [-1, -1]]), torch.zeros(2, 2).double(), 0.5)
        >>> always_first = torch.tensor([[1.0, 0.0]] * 2).double()
        >>> cost_to_go(mdp, always_first, torch.tensor([1.0, 6.0]).double()).tolist()
        [[3.0, 0.0], [0.0, 0.0]]
    """
    return mdp.step_discount * successor_values(mdp, expected_sum(mdp, policy, cost))


def expected_sum(mdp: TokenMDP, policy: Table, per_state: Values) -> Values:
    """E_pi[sum_{k>=0} gamma^k x(s_{t+k})] of every state, by solving (I - gamma P) G = x.

    Example:
        >>> loop = TokenMDP(torch.tensor([[0, 0]]), torch.zeros(1, 2).double(), 0.5)
        >>> uniform = torch.full((1, 2), 0.5, dtype=torch.float64)
        >>> expected_sum(loop, uniform, torch.ones(1).double()).tolist()
        [2.0]
    """
    return torch.linalg.solve(_less_its_flow(mdp, policy), per_state)


def occupancy(mdp: TokenMDP, policy: Table) -> Values:
    """d^pi(s) = sum_t gamma^t P_pi(s_t = s) from state 0 on, by solving (I - gamma P^T) d = e_0.

    Example:
        >>> mdp = TokenMDP(torch.tensor([[1, -1], [-1, -1]]), torch.zeros(2, 2).double(), 0.5)
        >>> occupancy(mdp, torch.full((2, 2), 0.5).double()).tolist()
        [1.0, 0.25]
    """
    start = torch.zeros_like(policy[:, 0])
    start[0] = 1.0
    return torch.linalg.solve(_less_its_flow(mdp, policy).mT, start)


def _less_its_flow(mdp: TokenMDP, policy: Table) -> Tensor:
    """I - gamma P, with P the transitions between states under the policy."""
    flow = policy * mdp.step_discount
    transition = flow.new_zeros(mdp.num_states, mdp.num_states)
    transition = transition.scatter_add(1, mdp.next_state.clamp(min=0), flow)
    return torch.eye(mdp.num_states).to(flow) - transition


def _surprise(policy: Tensor) -> Tensor:
    """-pi log pi, with a finite gradient also where pi is 0."""
    return -policy * policy.where(policy > 0, 1.0).log()
