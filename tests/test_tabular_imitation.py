"""Section 9 on drawn trees: values, the gradient of (9.5), soft improvement, where TD ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tabular_batch import Problem, exact_batch, make_problem, responses, visits
from tdistill import core
from tdistill.tabular import (
    TokenMDP,
    cost_to_go,
    expected_sum,
    occupancy,
    policy_evaluation,
    random_mdp,
    soft_improvement,
    soft_policy,
    soft_return,
    state_kl,
    tilted,
    with_log_teacher,
)
from tdistill.training.objectives import KD, ReverseKL

on_every_draw = settings(deadline=None, max_examples=10, derandomize=True)
seeds = st.integers(0, 2**31)


def drawn(shape: Any, seed: int, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Trees with a teacher on its sets and a student on the same sets; whole responses at 1."""
    vocabulary, depth = draw(st.sampled_from([(3, 1), (3, 3), (4, 2), (4, 3), (5, 2)]))
    discount = draw(st.sampled_from([1.0, 1.0, 0.99, 0.7, 0.0]))
    set_top_p = draw(st.sampled_from([0.6, 0.9, 1.0]))
    return make_problem(
        vocabulary, depth, discount=discount, set_top_p=set_top_p, seed=draw(st.integers(0, 9999))
    )


def transitions(problem: Problem, lengths: Tensor, ended: Tensor) -> core.Transitions:
    """In float64, which a discount in single precision would spoil."""
    links = core.transitions(lengths, ended, discount=1.0)
    return replace(links, discount=problem.mdp.discount * links.discount.double())


def sequence_kl(problem: Problem, policy: Tensor) -> Tensor:
    """``sum_y pi(y) sum_t gamma^t log pi / T``; with gamma 1 the KL of whole responses."""
    total = policy.new_zeros(())
    for states, tokens, _ in responses(problem.mdp, problem.allowed.double()):
        place = torch.tensor(states), torch.tensor(tokens)
        ratios = policy[place].log() - problem.teacher[place].log()
        weights = problem.mdp.discount ** torch.arange(len(tokens), dtype=torch.float64)
        total = total + policy[place].prod() * (weights * ratios).sum()
    return total


class TestValues:
    @on_every_draw
    @given(problems())
    def test_v_is_minus_the_divergence_of_whole_responses(self, problem: Problem):
        value = soft_return(with_log_teacher(problem.mdp, problem.teacher), problem.other)
        torch.testing.assert_close(-value[0], sequence_kl(problem, problem.other))
        cost = state_kl(problem.other, problem.teacher)
        torch.testing.assert_close(-value, expected_sum(problem.mdp, problem.other, cost))

    @on_every_draw
    @given(problems())
    def test_q_is_the_teacher_less_the_cost_to_go(self, problem: Problem):
        """(9.2) against (9.4): g = -discount V^pi(s')."""
        mdp, allowed = problem.mdp, problem.allowed
        action_value = policy_evaluation(with_log_teacher(mdp, problem.teacher), problem.other)
        after = cost_to_go(mdp, problem.other, state_kl(problem.other, problem.teacher))
        expected = (problem.teacher.log() - after)[allowed]
        torch.testing.assert_close(action_value[allowed], expected)
        improved = soft_improvement(mdp, problem.teacher, problem.other)
        torch.testing.assert_close(improved, soft_policy(action_value, allowed))

    @on_every_draw
    @given(problems())
    def test_a_student_that_is_the_teacher_costs_nothing(self, problem: Problem):
        cost = state_kl(problem.teacher, problem.teacher)
        after = cost_to_go(problem.mdp, problem.teacher, cost)
        assert cost.abs().max() == 0.0
        assert after.abs().max() == 0.0
        improved = soft_improvement(problem.mdp, problem.teacher, problem.teacher)
        torch.testing.assert_close(improved, problem.teacher)


def actor_loss(mdp: TokenMDP, teacher: Tensor, policy: Tensor, states: Tensor) -> Tensor:
    """(9.5) with the exact g, over states with weights; only the policy of the sum has gradient."""
    held = policy.detach()
    price = cost_to_go(mdp, held, state_kl(held, teacher))
    return (states.detach() * (state_kl(policy, teacher) + (policy * price).sum(1))).sum()


class TestGradients:
    @on_every_draw
    @given(problems(), seeds, st.booleans())
    def test_the_actors_gradient_is_that_of_the_enumerated_divergence(
        self, problem: Problem, seed: int, tied: bool
    ):
        """In any parameters: free in every state, or states that share rows."""
        mdp, shape = problem.mdp, problem.teacher.shape
        part = torch.arange(shape[0]) % 2 if tied else torch.arange(shape[0])
        scores = drawn((int(part.max()) + 1, shape[1]), seed).requires_grad_()
        policy = soft_policy(scores[part], problem.allowed)
        (exact,) = torch.autograd.grad(sequence_kl(problem, policy), scores, retain_graph=True)
        loss = actor_loss(mdp, problem.teacher, policy, occupancy(mdp, policy))
        (found,) = torch.autograd.grad(loss, scores, retain_graph=True)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
        value = soft_return(with_log_teacher(mdp, problem.teacher), policy)[0]
        (of_value,) = torch.autograd.grad(value, scores)
        torch.testing.assert_close(-of_value, exact, rtol=1e-9, atol=1e-12)

    @on_every_draw
    @given(problems(), seeds)
    def test_sampled_actions_with_trace_1_need_no_critic(self, problem: Problem, seed: int):
        """MiniLLM's gradient: log-ratios of what follows, as a lambda return without a value."""
        scores = drawn(problem.teacher.shape, seed).requires_grad_()
        policy = soft_policy(scores, problem.allowed)
        (exact,) = torch.autograd.grad(sequence_kl(problem, policy), scores, retain_graph=True)
        surrogate = policy.new_zeros(())
        for states, tokens, chance in responses(problem.mdp, policy.detach()):
            place = torch.tensor(states), torch.tensor(tokens)
            ratio = (policy[place] / problem.teacher[place]).log().detach()
            links = transitions(problem, torch.tensor([len(tokens)]), torch.tensor([True]))
            nothing = torch.zeros_like(ratio)
            after = core.lambda_return(nothing, -ratio, nothing, links, trace=1.0)
            seen = problem.mdp.discount ** torch.arange(len(tokens), dtype=torch.float64)
            surrogate = surrogate + chance * (seen * policy[place].log() * (ratio + after)).sum()
        (found,) = torch.autograd.grad(surrogate, scores)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)

    @on_every_draw
    @given(problems(), seeds)
    def test_without_a_future_it_is_the_librarys_reverse_kl_on_own_rows(
        self, problem: Problem, seed: int
    ):
        scores = drawn(problem.teacher.shape, seed).requires_grad_()
        policy = soft_policy(scores, problem.allowed)
        own = exact_batch(replace(problem, other=policy.detach()), student_share=1.0)
        expected = own.expected(ReverseKL(support="set"), scores)
        blind = replace(problem.mdp, discount=0.0)
        found = actor_loss(blind, problem.teacher, policy, visits(problem.mdp, policy).sum(1))
        self.same(found, expected, scores)

    @on_every_draw
    @given(problems(), seeds, st.sampled_from(["beta", "discount"]))
    def test_without_a_tilt_it_is_the_librarys_kd(self, problem: Problem, seed: int, zero: str):
        """(9.6) with beta or the discount at 0."""
        scores = drawn(problem.teacher.shape, seed).requires_grad_()
        policy = soft_policy(scores, problem.allowed)
        mdp = replace(problem.mdp, discount=0.0) if zero == "discount" else problem.mdp
        beta = 0.0 if zero == "beta" else 2.0
        cost = state_kl(problem.teacher, policy.detach())
        target = tilted(problem.teacher, beta * cost_to_go(mdp, problem.teacher, cost))
        seen = visits(problem.mdp, problem.teacher).sum(1)
        expected = exact_batch(problem).expected(KD(support="set"), scores)
        self.same((seen * state_kl(target, policy)).sum(), expected, scores)

    @staticmethod
    def same(found: Tensor, expected: Tensor, scores: Tensor) -> None:
        torch.testing.assert_close(found, expected)
        slopes = [torch.autograd.grad(x, scores, retain_graph=True)[0] for x in (found, expected)]
        torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)


class TestImprovement:
    @on_every_draw
    @given(problems())
    def test_no_state_loses_and_a_tree_ends_at_the_teacher(self, problem: Problem):
        mdp = with_log_teacher(problem.mdp, problem.teacher)
        policy = problem.other
        for _ in range(3):  # depth of the deepest tree
            improved = soft_improvement(mdp, problem.teacher, policy)
            assert (soft_return(mdp, improved) - soft_return(mdp, policy)).min() >= -1e-13
            policy = improved
        torch.testing.assert_close(policy, problem.teacher)

    @on_every_draw
    @given(seeds, st.sampled_from([0.5, 0.9, 0.99]))
    def test_no_state_loses_where_responses_come_back(self, seed: int, discount: float):
        generator = torch.Generator().manual_seed(seed)
        mdp = random_mdp(
            6, 4, discount=discount, reward_scale=0.0, end_share=0.1, generator=generator
        )
        teacher, policy = drawn((2, 6, 4), seed).softmax(2)
        mdp = with_log_teacher(mdp, teacher)
        for _ in range(4):
            improved = soft_improvement(mdp, teacher, policy)
            gain = soft_return(mdp, improved) - soft_return(mdp, policy)
            assert gain.min() >= -1e-13 * mdp.horizon
            policy = improved


Returns = Callable[[Tensor, Tensor, Tensor, Tensor, core.Transitions], Tensor]
# Of cost, state value, g and log-ratio to the writer at every step.
RETURNS: dict[str, Returns] = {
    "one-step": lambda c, v, g, ratio, links: core.k_step_return(0 * c, -c, v, links, horizon=1),
    "k-step": lambda c, v, g, ratio, links: core.k_step_return(0 * c, -c, v, links, horizon=2),
    "lambda": lambda c, v, g, ratio, links: core.lambda_return(0 * c, -c, v, links, trace=0.7),
    "monte-carlo": lambda c, v, g, ratio, links: core.lambda_return(0 * c, -c, v, links, trace=1.0),
    "retrace": lambda c, v, g, ratio, links: core.retrace_return(
        0 * c, g, v, ratio, links, trace=0.9
    ),
}


def td_fixed_point(
    problem: Problem,
    returns: str,
    cost: Tensor,
    *,
    policy: Tensor,
    writer: Tensor,
    cuts: dict[int, float],
    sees_the_last_token: bool = False,
) -> Tensor:
    """A tabular critic's end from g = 0: the mean target of each state and token of the rows.

    The writer's responses are cut at each length with a chance; those that are shorter have ended,
    and those of just that length are cut as well unless their last token is looked at.
    """
    rows = [
        (
            states[:cut],
            tokens[:cut],
            chance * share,
            len(tokens) < cut or (sees_the_last_token and len(tokens) == cut),
        )
        for states, tokens, chance in responses(problem.mdp, writer)
        for cut, share in cuts.items()
    ]
    lengths = torch.tensor([len(tokens) for _, tokens, _, _ in rows])
    ended = torch.tensor([end for _, _, _, end in rows])
    links = transitions(problem, lengths, ended)
    state = torch.tensor([s for states, *_ in rows for s in states])
    token = torch.tensor([a for _, tokens, *_ in rows for a in tokens])
    chance = torch.tensor([c for *_, c, _ in rows], dtype=torch.float64).repeat_interleave(lengths)
    chance = chance * links.can_bootstrap  # the last step of a cut row has no target
    place = state * policy.shape[1] + token
    weight = torch.zeros(policy.numel()).double().index_add(0, place, chance)
    ratio = policy[state, token].log() - writer[state, token].log()
    critic = torch.zeros_like(policy)
    for _ in range(4):  # one more than the deepest tree has steps
        value = cost + (policy * critic).sum(1)
        steps = (cost[state], value[state], critic[state, token], ratio)
        target = RETURNS[returns](*steps, links)
        total = torch.zeros_like(weight).index_add(0, place, chance * target)
        critic = (total / weight.where(weight > 0, 1.0)).view_as(policy)
    return critic


ALL_LENGTHS = {1: 0.2, 2: 0.3, 3: 0.1, 9: 0.4}


class TestCritic:
    @pytest.mark.parametrize("returns", RETURNS)
    @on_every_draw
    @given(problem=problems(), seed=seeds)
    def test_td_ends_at_the_cost_to_go_of_the_rows_policy(
        self, returns: str, problem: Problem, seed: int
    ):
        """Rows that ended and rows that were cut, of the student (9.4) or of the teacher (9.6)."""
        cost = drawn(problem.teacher.shape[:1], seed).exp()
        for policy in (problem.other, problem.teacher):
            found = td_fixed_point(
                problem, returns, cost, policy=policy, writer=policy, cuts=ALL_LENGTHS
            )
            expected = cost_to_go(problem.mdp, policy, cost)
            reached = visits(problem.mdp, policy) > 0
            torch.testing.assert_close(found[reached], expected[reached])

    @pytest.mark.parametrize("returns", ["one-step", "retrace"])
    @on_every_draw
    @given(problem=problems(), seed=seeds)
    def test_one_step_and_retrace_need_no_rows_of_the_policy_that_they_value(
        self, returns: str, problem: Problem, seed: int
    ):
        cost = drawn(problem.teacher.shape[:1], seed).exp()
        found = td_fixed_point(
            problem,
            returns,
            cost,
            policy=problem.other,
            writer=problem.teacher,
            cuts=ALL_LENGTHS,
        )
        expected = cost_to_go(problem.mdp, problem.other, cost)
        torch.testing.assert_close(found[problem.reached], expected[problem.reached])

    def test_other_returns_do(self):
        """So (9.6) with a tilted bootstrap and a trace values a mixture of tilt and teacher."""
        problem = make_problem(3, 3, discount=1.0, set_top_p=1.0, seed=0)
        cost = torch.arange(problem.mdp.num_states).double()
        settings = {"writer": problem.teacher, "cuts": {9: 1.0}}
        found = td_fixed_point(problem, "lambda", cost, policy=problem.other, **settings)
        own = cost_to_go(problem.mdp, problem.other, cost)[0, 1:]
        teachers = cost_to_go(problem.mdp, problem.teacher, cost)[0, 1:]
        between = (found[0, 1:] - own) / (teachers - own)
        assert ((between > 0.1) & (between < 0.9)).all()

    @pytest.mark.parametrize(("returns", "twice"), [("k-step", 0.4), ("retrace", 0.0)])
    def test_a_limit_that_looks_at_the_last_token_biases_longer_returns(
        self, returns: str, twice: float
    ):
        """Where the end token came last it counts as itself, else the mean over all tokens stands
        in, the end token among them: so the chance of the end counts twice. Retrace subtracts g of
        the token that came, so that each token counts as itself."""
        problem = make_problem(3, 3, discount=1.0, set_top_p=1.0, seed=0)
        teacher, cost = problem.teacher, torch.arange(7.0).double()
        found = td_fixed_point(
            problem,
            returns,
            cost,
            policy=teacher,
            writer=teacher,
            cuts={2: 0.4, 9: 0.6},
            sees_the_last_token=True,
        )
        exact = cost_to_go(problem.mdp, teacher, cost)
        torch.testing.assert_close(found[1:], exact[1:])
        counted_twice = teacher[1:3, 0] * (teacher * exact).sum(1)[1:3]
        torch.testing.assert_close(found[0, 1:], exact[0, 1:] - twice * counted_twice)

    @pytest.mark.parametrize("returns", RETURNS)
    def test_where_all_rows_are_cut_the_cost_of_the_last_state_is_the_last_that_counts(
        self, returns: str
    ):
        problem = make_problem(3, 3, discount=0.9, set_top_p=1.0, seed=0)
        cost = torch.ones(problem.mdp.num_states).double()
        found = td_fixed_point(
            problem, returns, cost, policy=problem.teacher, writer=problem.teacher, cuts={2: 1.0}
        )
        end, go_on = 0.0, 0.9
        assert found[0].tolist() == pytest.approx([end, go_on, go_on])
