"""Where each objective ends, computed without it: dense dynamic programming, Newton, closed forms.

Every function maps a problem to the policy on its sets [S, V]. The gradients of the objectives play
no part here: rewards go through ``tdistill.tabular``, convex problems through Newton's method in
another parametrisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tabular_batch import Problem, responses, visits
from tdistill.tabular import (
    soft_optimal_q,
    soft_policy,
    state_values,
    successor_values,
    with_teacher,
)

Phi = Callable[[Tensor], Tensor]
DEPTH = 3  # of the deepest tree; more passes change nothing


def projected_teacher(problem: Problem) -> Tensor:
    """proj_p pi*."""
    return problem.teacher


def soft_optimal(problem: Problem, reward: Tensor) -> Tensor:
    """The soft-optimal policy of a reward in the MDP limited to the sets (2.4)."""
    mdp = replace(problem.mdp, reward=reward)
    return soft_policy(soft_optimal_q(mdp, problem.allowed), problem.allowed)


def set_reward(problem: Problem) -> Tensor:
    """The teacher's reward with V_T over the sets."""
    next_value = successor_values(problem.mdp, state_values(problem.scores, problem.allowed))
    return problem.scores - problem.mdp.step_discount * next_value


def own_reward(problem: Problem) -> Tensor:
    """Soft-optimal for the reward over the sets."""
    return soft_optimal(problem, set_reward(problem))


def whole_reward(problem: Problem) -> Tensor:
    """Soft-optimal on the sets for the reward over the whole vocabulary: the policy of Q_p*."""
    return soft_optimal(problem, with_teacher(problem.mdp, problem.scores).reward)


def log_teacher(scale: float) -> Callable[[Problem], Tensor]:
    """Soft-optimal for ``scale * log proj_p pi*``."""

    def policy(problem: Problem) -> Tensor:
        reward = scale * problem.teacher.where(problem.allowed, 1.0).log()
        return soft_optimal(problem, reward)

    return policy


def shares(problem: Problem, student_share: float) -> tuple[Tensor, Tensor]:
    """Expected visits of expert rows and of the student's."""
    expert = (1.0 - student_share) * visits(problem.mdp, problem.writer)
    return expert, student_share * visits(problem.mdp, problem.other)


def halves(problem: Problem, student_share: float) -> tuple[Tensor, Tensor]:
    """The visits of each as a distribution: each source half of the data."""
    expert, student = shares(problem, student_share)
    return expert / expert.sum(), student / student.sum()


def constant_reward(
    reward: float, weight: float, share: float, *, by: Any = halves
) -> Callable[[Problem], Tensor]:
    """SQIL: soft-optimal for ``R e / (e + lambda p)``."""

    def policy(problem: Problem) -> Tensor:
        expert, student = by(problem, share)
        both = (expert + weight * student).where(problem.reached, 1.0)
        return soft_optimal(problem, reward * expert / both)

    return policy


def backward(problem: Problem, at_state: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The policy of Q found state by state, children first.

    Args:
        problem: the tree.
        at_state: maps a state and V(s') of its allowed tokens to Q of those tokens.
    """
    q = torch.zeros_like(problem.scores)
    value = torch.zeros(problem.mdp.num_states, dtype=torch.float64)
    for state in reversed(range(problem.mdp.num_states)):
        inside = problem.allowed[state]
        following = successor_values(problem.mdp, value)[state, inside]
        q[state, inside] = at_state(state, following)
        value[state] = q[state, inside].logsumexp(0)
    return soft_policy(q, problem.allowed)


def semi_iq(phi: Phi) -> Callable[[Problem], Tensor]:
    """IQ-Learn with V(s') held: the fixed point of ``pi = pi_T phi'(r)``."""

    def policy(problem: Problem) -> Tensor:
        def at_state(state: int, following: Tensor) -> Tensor:
            inside = problem.allowed[state]
            teacher = problem.teacher[state, inside]
            later = problem.mdp.step_discount[state, inside] * following

            def loss(q: Tensor) -> Tensor:
                reward = q - later
                return q.logsumexp(0) + (teacher * (reward - phi(reward) - q)).sum()

            return newton(loss, later.clone())

        return backward(problem, at_state)

    return policy


@dataclass(frozen=True, eq=False)
class Weights:
    """How often each term of every state and token counts [S, V]."""

    rewarded: Tensor  # phi(r)
    flowing: Tensor  # V(s) - gamma V(s')
    cloned: Tensor  # V(s) - Q(s,a), where a cut leaves nothing else
    pulled: Tensor | float = 0.0  # r - phi(r), beside the above


def as_visited(problem: Problem) -> Weights:
    """All over the expert's visits."""
    taken = visits(problem.mdp, problem.writer)
    return Weights(taken, taken, taken)


def discounted(problem: Problem) -> Weights:
    """All by gamma^t along each expert response, scaled to its number of steps."""
    taken = torch.zeros_like(problem.scores)
    for states, tokens, chance in responses(problem.mdp, problem.writer):
        decay = problem.mdp.discount ** torch.arange(len(tokens), dtype=torch.float64)
        place = torch.tensor(states), torch.tensor(tokens)
        taken.index_put_(place, chance * len(tokens) * decay / decay.sum(), accumulate=True)
    return Weights(taken, taken, taken)


def mixed(share: float) -> Callable[[Problem], Weights]:
    """phi a mean over the expert's steps and a pull of the student's; the flow over all rows."""

    def weights(problem: Problem) -> Weights:
        expert, student = shares(problem, share)
        everything = expert + student
        return Weights(everything.sum() / expert.sum() * expert, everything, expert, student)

    return weights


def residual_iq(
    phi: Phi, weights: Callable[[Problem], Weights] = as_visited
) -> Callable[[Problem], Tensor]:
    """IQ-Learn with the gradient through V(s'): its convex form, minimised over rewards.

    Over rewards, ``-E phi(r) + E[V(s) - gamma V(s')]`` is convex: V is a log-sum-exp of rewards,
    and on a tree every V(s) has a weight that is not negative.
    """

    def policy(problem: Problem) -> Tensor:
        w = weights(problem)
        inside = problem.allowed

        def table(rewards: Tensor) -> Tensor:
            return torch.zeros_like(problem.scores).masked_scatter(inside, rewards)

        def loss(rewards: Tensor) -> Tensor:
            reward = table(rewards)
            _, value = tree_q(problem, reward)
            later = problem.mdp.step_discount * successor_values(problem.mdp, value)
            terms = w.flowing * (value[:, None] - later) - w.rewarded * phi(reward)
            terms = terms + w.pulled * (reward - phi(reward))
            terms = terms.where(~problem.unknown, w.cloned * (value[:, None] - reward))
            return terms.where(problem.reached, 0.0).sum()

        start = torch.zeros(int(inside.sum()), dtype=torch.float64)
        return soft_policy(tree_q(problem, table(newton(loss, start)))[0], inside)

    return policy


def tree_q(problem: Problem, reward: Tensor) -> tuple[Tensor, Tensor]:
    """Q and V of a reward on the sets, by one pass from the leaves, with gradients."""
    mdp = problem.mdp
    q, value = reward, state_values(reward, problem.allowed)
    for _ in range(DEPTH):
        q = reward + mdp.step_discount * successor_values(mdp, value)
        value = state_values(q, problem.allowed)
    return q, value


def least_squares(
    penalty: float, share: float, *, absorbing: bool, by: Any = halves
) -> Callable[[Problem], Tensor]:
    """LS-IQ: at every state, the minimum of its two squared errors with V(s') held."""

    def policy(problem: Problem) -> Tensor:
        expert, student = by(problem, share)
        far = 1.0 / (penalty * (1.0 - problem.mdp.discount))

        def at_state(state: int, following: Tensor) -> Tensor:
            inside = problem.allowed[state]
            ends = problem.mdp.step_discount[state, inside] == 0.0
            size = torch.where(ends & absorbing, far, 1.0 / penalty).double()
            later = problem.mdp.step_discount[state, inside] * following.clamp(-far, far)
            weight_e, weight_p = expert[state, inside], student[state, inside]
            if not bool(problem.reached[state].any()):
                return later

            def loss(q: Tensor) -> Tensor:
                own = weight_e * (q - size - later) ** 2
                return (own + weight_p * (q.logsumexp(0) + size - later) ** 2).sum()

            return newton(loss, size + later)

        return backward(problem, at_state)

    return policy


def newton(function: Callable[[Tensor], Tensor], start: Tensor, *, steps: int = 200) -> Tensor:
    """A minimum by Newton's method: absolute curvature, halved steps."""
    found = start
    for _ in range(steps):
        slope: Any = torch.autograd.functional.jacobian(function, found)
        if float(slope.abs().max()) < 1e-13:
            break
        curvature: Any = torch.autograd.functional.hessian(function, found)
        values, vectors = torch.linalg.eigh(curvature)
        step = vectors @ ((vectors.T @ slope) / values.abs().clamp(min=1e-12))
        before = float(function(found))
        for _ in range(40):
            # Near the minimum the values differ by rounding alone, and the whole step is right.
            if float(function(found - step)) <= before + 1e-12 * (1.0 + abs(before)):
                break
            step = step / 2
        found = found - step
    return found
