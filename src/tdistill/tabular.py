"""Exact dynamic programming in float64 on small token MDPs: the oracle of the theory (section 3).

Transitions are deterministic, as appending a token is. Letters: S state, V vocabulary (actions).
Every function is plain tensor algebra, so gradients flow through scores, policies and rewards, and
an objective can be minimised on the same MDP that this module solves exactly.

A policy is a tensor of probabilities with one row a state; a family of action sets is a boolean
mask of the same shape with at least one action a state. With the full vocabulary as the set, Q_p*
of (2.4) is the ordinary soft-optimal Q*.

Reference: Yu, Li, Zhang, "Language Model Distillation: A Temporal Difference Imitation Learning
Perspective" (arXiv 2505.20335), propositions 1 to 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tdistill.core import implied_reward, soft_bellman_backup, top_p_sets
from tdistill.errors import InvalidValueError

Table = Float64[Tensor, "S V"]
Values = Float64[Tensor, " S"]
Sets = Bool[Tensor, "S V"]

TERMINAL = -1


@dataclass(frozen=True, eq=False)
class TokenMDP:
    """A finite MDP with deterministic transitions.

    Attributes:
        next_state: successor of every state and token, ``TERMINAL`` (-1) where the episode ends.
        reward: reward in nats, float64.
        discount: gamma in [0, 1), applied at every transition that does not end the episode.

    Raises:
        InvalidValueError: for tensors of another shape or type, a successor that is no state, a
            reward that is not finite, or a discount outside [0, 1).

    Example:
        >>> TokenMDP(torch.tensor([[0, -1]]), torch.zeros(1, 2).double(), 0.9).num_states
        1
    """

    next_state: Int64[Tensor, "S V"]
    reward: Table
    discount: float

    def __post_init__(self) -> None:
        """Refuse tables that do not describe an MDP."""
        shape = list(self.next_state.shape)
        if len(shape) != 2 or 0 in shape or list(self.reward.shape) != shape:
            raise InvalidValueError(
                "next_state, reward: expected one shape [S, V] with S, V > 0, "
                f"found {shape} and {list(self.reward.shape)}"
            )
        if self.next_state.dtype != torch.int64 or self.reward.dtype != torch.float64:
            raise InvalidValueError(
                "next_state, reward: expected int64 and float64, "
                f"found {self.next_state.dtype} and {self.reward.dtype}"
            )
        low, high = int(self.next_state.min()), int(self.next_state.max())
        if low < TERMINAL or high >= shape[0]:
            raise InvalidValueError(
                f"next_state: expected -1 or a state below {shape[0]}, found values {low} to {high}"
            )
        if not self.reward.isfinite().all():
            raise InvalidValueError("reward: expected finite numbers, found NaN or infinity")
        if not 0.0 <= self.discount < 1.0:
            raise InvalidValueError(f"discount: expected gamma in [0, 1), found {self.discount}")

    @property
    def num_states(self) -> int:
        """Number of states that are not terminal."""
        return self.next_state.shape[0]

    @property
    def step_discount(self) -> Table:
        """gamma of every transition, 0 where it ends the episode."""
        return self.discount * (self.next_state != TERMINAL).to(self.reward)

    @property
    def full_vocabulary(self) -> Sets:
        """The action sets that leave nothing out."""
        return torch.ones_like(self.next_state, dtype=torch.bool)


def prefix_tree(
    vocabulary_size: int,
    depth: int,
    *,
    discount: float,
    reward_scale: float,
    generator: torch.Generator,
    end_token: int = 0,
) -> TokenMDP:
    """All responses of up to ``depth`` tokens: a state is a token prefix, an action the next token.

    The end token and every token of the last step end the episode. States are numbered breadth
    first, the empty prefix is state 0.

    Args:
        vocabulary_size: number of tokens, the end token included; at least 2.
        depth: longest response in tokens, at least 1.
        discount: gamma in [0, 1).
        reward_scale: standard deviation of the normal rewards, in nats.
        generator: source of the rewards.
        end_token: id of the token that ends a response.

    Returns:
        The MDP.

    Raises:
        InvalidValueError: for sizes out of range or an end token outside the vocabulary.

    Example:
        >>> seed = torch.Generator().manual_seed(0)
        >>> tree = prefix_tree(3, 2, discount=0.9, reward_scale=1.0, generator=seed)
        >>> tree.next_state.tolist()
        [[-1, 1, 2], [-1, -1, -1], [-1, -1, -1]]
    """
    if vocabulary_size < 2 or depth < 1 or not 0 <= end_token < vocabulary_size:
        raise InvalidValueError(
            "expected vocabulary_size >= 2, depth >= 1 and end_token below vocabulary_size, "
            f"found {vocabulary_size}, {depth} and {end_token}"
        )
    branches = vocabulary_size - 1
    num_states = sum(branches**level for level in range(depth))
    # Breadth-first numbers of a complete tree: the children of s start at branches * s + 1.
    children = torch.arange(1, num_states * branches + 1).view(num_states, branches)
    children = children.where(children < num_states, TERMINAL)
    end = torch.full((num_states, 1), TERMINAL)
    next_state = torch.cat([children[:, :end_token], end, children[:, end_token:]], dim=1)
    return TokenMDP(next_state, _normal(next_state, reward_scale, generator), discount)


def random_mdp(
    num_states: int,
    vocabulary_size: int,
    *,
    discount: float,
    reward_scale: float,
    end_share: float,
    generator: torch.Generator,
) -> TokenMDP:
    """Successors drawn uniformly over the states, so cycles occur and horizons can be long.

    Args:
        num_states: number of states.
        vocabulary_size: number of tokens.
        discount: gamma in [0, 1).
        reward_scale: standard deviation of the normal rewards, in nats.
        end_share: probability that a transition ends the episode, in [0, 1].
        generator: source of successors and rewards.

    Returns:
        The MDP.

    Example:
        >>> seed = torch.Generator().manual_seed(0)
        >>> mdp = random_mdp(4, 3, discount=0.9, reward_scale=1.0, end_share=1.0, generator=seed)
        >>> bool((mdp.next_state == TERMINAL).all())
        True
    """
    shape = (num_states, vocabulary_size)
    next_state = torch.randint(num_states, shape, generator=generator)
    ends = torch.rand(shape, generator=generator) < end_share
    next_state = next_state.masked_fill(ends, TERMINAL)
    return TokenMDP(next_state, _normal(next_state, reward_scale, generator), discount)


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
        >>> seed = torch.Generator().manual_seed(0)
        >>> tree = prefix_tree(3, 2, discount=0.9, reward_scale=1.0, generator=seed)
        >>> scores = torch.randn(3, 3, generator=seed, dtype=torch.float64)
        >>> taught = with_teacher(tree, scores)
        >>> torch.allclose(soft_optimal_q(taught, tree.full_vocabulary), scores)
        True
    """
    next_value = successor_values(mdp, soft_values(teacher_scores, mdp.full_vocabulary))
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


def soft_values(scores: Table, allowed: Sets) -> Values:
    """V_p(s) = log sum_{a in A_p(s)} exp Q(s,a), (3.2), on a dense mask.

    Args:
        scores: Q in nats.
        allowed: the action sets.

    Returns:
        The value of every state in nats.

    Example:
        >>> scores = torch.zeros(1, 3, dtype=torch.float64)
        >>> soft_values(scores, torch.tensor([[True, False, True]])).exp()
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
    gained = (policy * mdp.reward + _surprise(policy)).sum(1)
    value = _expected_sum(mdp, policy, gained)
    return soft_bellman_backup(mdp.reward, successor_values(mdp, value), mdp.step_discount)


def soft_optimal_q(mdp: TokenMDP, allowed: Sets) -> Table:
    """Q_p*, the soft-optimal Q of the MDP limited to the action sets (2.4), by policy iteration.

    Each step evaluates a policy exactly and takes the soft policy of the result; the values rise to
    the fixed point Q = r + gamma V_p(s') quadratically, where value iteration gains only a factor
    gamma a step.

    Args:
        mdp: the MDP.
        allowed: the action sets; the full vocabulary gives Q*.

    Returns:
        Q in nats, for every token, also outside the sets, to a relative 1e-14 / (1 - gamma).

    Example:
        >>> loop = TokenMDP(torch.tensor([[0, 0]]), torch.zeros(1, 2).double(), 0.5)
        >>> soft_optimal_q(loop, loop.full_vocabulary).exp().round(decimals=9).tolist()
        [[2.0, 2.0]]
    """
    rounding = 64 * torch.finfo(torch.float64).eps / (1 - mdp.discount)
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
    cost = -torch.log1p(-left_out)
    total = _expected_sum(mdp, project_policy(policy, allowed), cost)
    return mdp.step_discount * successor_values(mdp, total)


def _expected_sum(mdp: TokenMDP, policy: Tensor, per_state: Tensor) -> Tensor:
    """E_pi[sum_{k>=0} gamma^k x(s_{t+k})] of every state, by solving (I - gamma P) G = x."""
    flow = policy * mdp.step_discount
    transition = flow.new_zeros(mdp.num_states, mdp.num_states)
    transition = transition.scatter_add(1, mdp.next_state.clamp(min=0), flow)
    identity = torch.eye(mdp.num_states).to(flow)
    return torch.linalg.solve(identity - transition, per_state)


def _surprise(policy: Tensor) -> Tensor:
    """-pi log pi, with a finite gradient also where pi is 0."""
    return -policy * policy.where(policy > 0, 1.0).log()


def _normal(like: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return scale * torch.randn(like.shape, generator=generator, dtype=torch.float64)
