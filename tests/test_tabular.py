"""The theory of method.md, section 3, checked exactly on small MDPs.

Tolerances are relative: a linear solve of (I - gamma P) in float64 loses about 1 / (1 - gamma), so
a quantity of the size of Q is compared to within 3e-14 (1 + sup |Q|) / (1 - gamma). The largest
error seen on 6,000 draws was a quarter of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdistill import core
from tdistill.core import kappa
from tdistill.errors import InvalidValueError
from tdistill.tabular import (
    TERMINAL,
    TokenMDP,
    per_state_gap,
    policy_evaluation,
    prefix_tree,
    project_policy,
    random_mdp,
    soft_operator,
    soft_optimal_q,
    soft_policy,
    state_values,
    successor_values,
    top_p_mask,
    with_teacher,
)

on_every_draw = settings(deadline=None, max_examples=50, derandomize=True)

discounts = st.floats(0.0, 0.99) | st.sampled_from([0.9, 0.99])
masses = (
    st.floats(0.0, 1.0, exclude_min=True)
    | st.floats(0.3, 0.95)
    | st.sampled_from([0.125, 0.25, 0.5, 0.75, 0.99, 1.0])
)
# 0 makes every token tie, 20 makes most states deterministic to rounding.
scales = st.sampled_from([0.0, 0.3, 1.0, 5.0, 20.0])
seeds = st.integers(0, 2**31)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def mdps(draw: st.DrawFn) -> TokenMDP:
    """Prefix trees and cyclic MDPs; rewards drawn directly or implied by drawn teacher logits."""
    generator = seeded(draw(seeds))
    vocabulary = draw(st.integers(3, 8))
    common = {"discount": draw(discounts), "reward_scale": draw(scales), "generator": generator}
    if draw(st.booleans()):
        depth = draw(st.integers(1, 4)) if vocabulary < 6 else 3
        end_token = draw(st.integers(0, vocabulary - 1))
        mdp = prefix_tree(vocabulary, depth, end_token=end_token, **common)
    else:
        end_share = draw(st.sampled_from([0.0, 0.1, 0.5]))
        mdp = random_mdp(draw(st.integers(1, 12)), vocabulary, end_share=end_share, **common)
    if draw(st.booleans()):
        mdp = with_teacher(mdp, mdp.reward)
    return mdp


@dataclass(frozen=True)
class Problem:
    """An MDP, its teacher pi* over the full vocabulary, and top-p sets of the teacher."""

    mdp: TokenMDP
    kappa: float
    optimal: Tensor
    teacher: Tensor
    allowed: Tensor

    @property
    def projected_q(self) -> Tensor:
        return policy_evaluation(self.mdp, project_policy(self.teacher, self.allowed))

    @property
    def tolerance(self) -> float:
        return 3e-14 * (1 + float(self.optimal.abs().max())) / (1 - self.mdp.discount)


def problem(mdp: TokenMDP, set_top_p: float, *, max_size: int | None = None) -> Problem:
    optimal = soft_optimal_q(mdp, mdp.full_vocabulary)
    teacher = soft_policy(optimal, mdp.full_vocabulary)
    allowed = top_p_mask(teacher, set_top_p, max_size=max_size)
    return Problem(mdp, kappa(set_top_p, mdp.discount), optimal, teacher, allowed)


problems = st.builds(problem, mdps(), masses)


def tree(vocabulary: int, depth: int, *, end: int) -> TokenMDP:
    """A prefix tree with normal rewards of one fixed seed."""
    return prefix_tree(
        vocabulary, depth, discount=0.9, reward_scale=1.0, generator=seeded(7), end_token=end
    )


def self_loop(*rewards: float, discount: float) -> TokenMDP:
    """One state to which every token returns."""
    reward = torch.tensor([rewards], dtype=torch.float64)
    return TokenMDP(torch.zeros_like(reward, dtype=torch.long), reward, discount)


class TestPropositions:
    @on_every_draw
    @given(problems, st.floats(0.0, 100.0), seeds)
    def test_1_operator_contracts_on_the_sets(self, drawn: Problem, scale: float, seed: int):
        mdp, allowed = drawn.mdp, drawn.allowed
        policy = project_policy(drawn.teacher, allowed)
        first, second = scale * torch.randn((2, *allowed.shape), generator=seeded(seed)).double()
        # What Q says outside the sets must not matter.
        second = second.where(allowed, second + 1e6)

        backed_up = soft_operator(mdp, first, policy) - soft_operator(mdp, second, policy)

        distance = float((first - second).abs()[allowed].max())
        largest = float(torch.stack([drawn.optimal, mdp.reward]).abs().max())
        slack = 1e-13 * (1 + largest + scale)
        assert backed_up.abs()[allowed].max() <= mdp.discount * distance + slack

    @on_every_draw
    @given(problems, st.floats(-10.0, 10.0))
    def test_1_the_factor_gamma_is_attained_by_a_constant(self, drawn: Problem, shift: float):
        mdp, policy = drawn.mdp, project_policy(drawn.teacher, drawn.allowed)

        shifted = soft_operator(mdp, drawn.optimal + shift, policy)

        expected = soft_operator(mdp, drawn.optimal, policy) + shift * mdp.step_discount
        torch.testing.assert_close(shifted, expected, rtol=0, atol=drawn.tolerance)

    @on_every_draw
    @given(problems)
    def test_2_projected_teacher_is_within_kappa(self, drawn: Problem):
        gap = (drawn.optimal - drawn.projected_q).abs()[drawn.allowed]
        assert gap.max() <= drawn.kappa + drawn.tolerance

    @on_every_draw
    @given(problems)
    def test_3_projected_teacher_below_set_optimum_below_optimum(self, drawn: Problem):
        set_optimal = soft_optimal_q(drawn.mdp, drawn.allowed)

        assert (set_optimal - drawn.projected_q)[drawn.allowed].min() >= -drawn.tolerance
        assert (drawn.optimal - set_optimal)[drawn.allowed].min() >= -drawn.tolerance

    @on_every_draw
    @given(problems)
    def test_4_set_optimum_is_within_kappa_and_the_per_state_bound(self, drawn: Problem):
        gap = drawn.optimal - soft_optimal_q(drawn.mdp, drawn.allowed)
        assert gap.abs()[drawn.allowed].max() <= drawn.kappa + drawn.tolerance
        bound = per_state_gap(drawn.mdp, drawn.teacher, drawn.allowed)
        assert (gap - bound).max() <= drawn.tolerance

    @on_every_draw
    @given(problems)
    def test_per_state_bound_is_the_gap_and_below_kappa(self, drawn: Problem):
        bound = per_state_gap(drawn.mdp, drawn.teacher, drawn.allowed)

        gap = drawn.optimal - drawn.projected_q
        torch.testing.assert_close(bound, gap, rtol=0, atol=drawn.tolerance)
        assert bound.min() >= 0
        assert bound.max() <= drawn.kappa + 1e-13 / (1 - drawn.mdp.discount)

    @on_every_draw
    @given(mdps(), masses, st.integers(1, 3))
    def test_per_state_bound_holds_where_a_cap_binds(
        self, mdp: TokenMDP, set_top_p: float, cap: int
    ):
        drawn = problem(mdp, set_top_p, max_size=cap)
        bound = per_state_gap(mdp, drawn.teacher, drawn.allowed)

        gap = drawn.optimal - drawn.projected_q
        torch.testing.assert_close(bound, gap, rtol=0, atol=drawn.tolerance)
        captured = float((drawn.teacher * drawn.allowed).sum(1).min().clamp(max=1.0))
        assert bound.max() <= kappa(captured, mdp.discount) + 1e-13 / (1 - mdp.discount)

    @on_every_draw
    @given(mdps())
    def test_nothing_is_lost_at_p_1(self, mdp: TokenMDP):
        drawn = problem(mdp, 1.0)
        assert per_state_gap(mdp, drawn.teacher, drawn.allowed).max() == 0
        torch.testing.assert_close(drawn.projected_q, drawn.optimal, rtol=0, atol=drawn.tolerance)

    def test_kappa_is_reached(self):
        # Two equal tokens, one of them kept at p = 1/2: log 2 is lost at every later step.
        drawn = problem(self_loop(0.0, 0.0, discount=0.5), 0.5)

        assert drawn.allowed.tolist() == [[True, False]]
        assert drawn.kappa == pytest.approx(math.log(2), rel=1e-15)
        expected = torch.full((1, 2), math.log(2), dtype=torch.float64)
        torch.testing.assert_close(drawn.optimal, expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(drawn.projected_q, torch.zeros_like(expected))
        torch.testing.assert_close(soft_optimal_q(drawn.mdp, drawn.allowed), 0 * expected)
        bound = per_state_gap(drawn.mdp, drawn.teacher, drawn.allowed)
        torch.testing.assert_close(bound, expected, rtol=1e-14, atol=0)

    def test_kappa_fails_where_a_cap_binds(self):
        drawn = problem(self_loop(0.0, 0.0, 0.0, 0.0, discount=0.9), 0.9, max_size=1)
        gap = (drawn.optimal - drawn.projected_q)[drawn.allowed]
        assert float(gap) == pytest.approx(kappa(0.25, 0.9), rel=1e-13)
        assert float(gap) > drawn.kappa


class TestFixedPoints:
    @on_every_draw
    @given(problems)
    def test_both_q_functions_are_fixed_points(self, drawn: Problem):
        mdp, allowed = drawn.mdp, drawn.allowed
        close = {"rtol": 0, "atol": drawn.tolerance}

        again = soft_operator(mdp, drawn.projected_q, project_policy(drawn.teacher, allowed))
        torch.testing.assert_close(again, drawn.projected_q, **close)

        scores = soft_optimal_q(mdp, allowed)
        ahead = successor_values(mdp, state_values(scores, allowed))
        again = mdp.reward + mdp.step_discount * ahead
        torch.testing.assert_close(again, scores, **close)

    @on_every_draw
    @given(problems, seeds)
    def test_no_policy_on_the_sets_does_better(self, drawn: Problem, seed: int):
        noise = torch.randn(drawn.allowed.shape, generator=seeded(seed), dtype=torch.float64)
        other = policy_evaluation(drawn.mdp, soft_policy(3 * noise, drawn.allowed))
        scores = soft_optimal_q(drawn.mdp, drawn.allowed)
        assert (scores - other).min() >= -drawn.tolerance

    @on_every_draw
    @given(mdps(), seeds)
    def test_any_teacher_is_optimal_for_its_implied_reward(self, mdp: TokenMDP, seed: int):
        scores = 3 * torch.randn(mdp.reward.shape, generator=seeded(seed), dtype=torch.float64)
        drawn = problem(with_teacher(mdp, scores), 1.0)
        torch.testing.assert_close(drawn.optimal, scores, rtol=0, atol=drawn.tolerance)


def responses(mdp: TokenMDP, state: int = 0) -> Iterator[list[tuple[int, int]]]:
    """Every way to the end of a tree, as (state, token) pairs."""
    for token, following in enumerate(mdp.next_state[state].tolist()):
        if following == TERMINAL:
            yield [(state, token)]
        else:
            yield from ([(state, token), *rest] for rest in responses(mdp, following))


def expectation(mdp: TokenMDP, policy: Tensor, of: Callable[[list[tuple[int, int]]], float]):
    """E over the responses of a tree drawn from a policy, summed one by one."""
    drawn = ((math.prod(float(policy[step]) for step in way), way) for way in responses(mdp))
    return math.fsum(chance * of(way) for chance, way in drawn if chance > 0)


class TestAgainstEnumeration:
    drawn = problem(tree(4, 3, end=2), 0.6)
    policy = project_policy(drawn.teacher, drawn.allowed)

    def test_policy_evaluation(self):
        def soft_return(way: list[tuple[int, int]]) -> float:
            gained = (self.drawn.mdp.reward - self.policy.log()).tolist()
            return math.fsum(0.9**k * gained[s][a] for k, (s, a) in enumerate(way))

        expected = expectation(self.drawn.mdp, self.policy, soft_return)
        root = (self.policy * self.drawn.projected_q)[0].sum() + torch.special.entr(
            self.policy[0]
        ).sum()
        assert float(root) == pytest.approx(expected, abs=1e-13)

    def test_per_state_gap(self):
        mass = (self.drawn.teacher * self.drawn.allowed).sum(1).tolist()

        def lost(way: list[tuple[int, int]]) -> float:
            return math.fsum(-(0.9**k) * math.log(mass[s]) for k, (s, _) in enumerate(way) if k)

        expected = expectation(self.drawn.mdp, self.policy, lost)
        assert expected > 0.1
        bound = per_state_gap(self.drawn.mdp, self.drawn.teacher, self.drawn.allowed)
        assert float((self.policy * bound)[0].sum()) == pytest.approx(expected, abs=1e-13)

    def test_the_librarys_sampled_bound_is_unbiased(self):
        neg_log_mass = -(self.drawn.teacher * self.drawn.allowed).sum(1).log()

        def sampled(way: list[tuple[int, int]]) -> float:
            losses = neg_log_mass[torch.tensor([s for s, _ in way])]
            return float(core.sampled_gap_bound(losses, torch.tensor([len(way)]), discount=0.9)[0])

        bound = per_state_gap(self.drawn.mdp, self.drawn.teacher, self.drawn.allowed)
        expected = float((self.policy * bound)[0].sum())
        found = expectation(self.drawn.mdp, self.policy, sampled)
        assert found == pytest.approx(expected, abs=1e-13)


class TestAgainstRaggedCore:
    @on_every_draw
    @given(problems)
    def test_value_projection_and_operator(self, drawn: Problem):
        mdp, allowed = drawn.mdp, drawn.allowed
        offsets = torch.nn.functional.pad(allowed.sum(1).cumsum(0), (1, 0))
        members = drawn.optimal[allowed]
        log_policy = core.project(drawn.teacher.log()[allowed], offsets)
        value = core.policy_value(members, log_policy, offsets)
        backed_up = core.soft_bellman_backup(
            mdp.reward, successor_values(mdp, value), mdp.step_discount
        )

        policy = project_policy(drawn.teacher, allowed)
        close = {"rtol": 0, "atol": drawn.tolerance}
        ragged_value = core.soft_value(members, offsets)
        torch.testing.assert_close(state_values(drawn.optimal, allowed), ragged_value, **close)
        torch.testing.assert_close(policy[allowed], log_policy.exp(), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(soft_operator(mdp, drawn.optimal, policy), backed_up, **close)


class TestByHand:
    def test_value_of_a_chain(self):
        # State 0: token 0 ends with reward 1, token 1 leads to state 1, where both end with 0.
        mdp = TokenMDP(
            torch.tensor([[TERMINAL, 1], [TERMINAL, TERMINAL]]),
            torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64),
            0.5,
        )
        optimal = soft_optimal_q(mdp, mdp.full_vocabulary)
        expected = [[1.0, 2.0 + 0.5 * math.log(2)], [0.0, 0.0]]
        torch.testing.assert_close(optimal, torch.tensor(expected, dtype=torch.float64))

        allowed = torch.tensor([[True, True], [True, False]])
        teacher = soft_policy(optimal, mdp.full_vocabulary)
        gap = per_state_gap(mdp, teacher, allowed)
        only_before_state_1 = [[0.0, 0.5 * math.log(2)], [0.0, 0.0]]
        torch.testing.assert_close(gap, torch.tensor(only_before_state_1, dtype=torch.float64))

    def test_reward_of_the_chosen_token_repeats(self):
        # Always token 0, reward 3 at discount 0.75, no entropy: 3 / (1 - 0.75).
        always = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        scores = policy_evaluation(self_loop(3.0, 1.0, discount=0.75), always)
        assert scores.tolist() == [[12.0, 10.0]]

    def test_projection_and_sets(self):
        policy = torch.tensor([[0.1, 0.4, 0.1, 0.4], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
        allowed = top_p_mask(policy, 0.85)
        assert allowed.tolist() == [[True, True, False, True], [True, False, False, False]]
        projected = project_policy(policy, allowed)
        expected = [[1 / 9, 4 / 9, 0.0, 4 / 9], [1.0, 0.0, 0.0, 0.0]]
        torch.testing.assert_close(projected, torch.tensor(expected, dtype=torch.float64))
        assert top_p_mask(policy, 0.85, max_size=1).tolist()[0] == [False, True, False, False]

    def test_gradients_are_right_where_the_policy_is_zero(self):
        drawn = TestAgainstEnumeration.drawn

        def of_scores(scores: Tensor) -> Tensor:
            policy = soft_policy(scores, drawn.allowed)
            return policy_evaluation(drawn.mdp, policy) + soft_operator(drawn.mdp, scores, policy)

        assert torch.autograd.gradcheck(of_scores, drawn.optimal.requires_grad_(True))


class TestShapes:
    def test_tree_with_the_end_token_in_the_middle(self):
        leaf = [TERMINAL] * 3
        inner = [[1, TERMINAL, 2], [3, TERMINAL, 4], [5, TERMINAL, 6]]
        mdp = tree(3, 3, end=1)
        assert mdp.next_state.tolist() == [*inner, leaf, leaf, leaf, leaf]
        assert mdp.step_discount.tolist()[0] == [0.9, 0.0, 0.9]

    @pytest.mark.parametrize(("end_share", "ended"), [(0.0, 0), (1.0, 100)])
    def test_random_mdp_is_reproducible_and_ends(self, end_share: float, ended: int):
        sizes = {"discount": 0.9, "reward_scale": 1.0, "end_share": end_share}
        first, again = (random_mdp(20, 5, **sizes, generator=seeded(3)) for _ in range(2))
        assert torch.equal(first.next_state, again.next_state)
        assert torch.equal(first.reward, again.reward)
        assert (first.next_state == TERMINAL).sum() == ended

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"next_state": torch.zeros(2, dtype=torch.long)}, "expected one shape"),
            ({"next_state": torch.zeros(1, 3, dtype=torch.long)}, "expected one shape"),
            ({"reward": torch.zeros(1, 2)}, "expected int64 and float64"),
            ({"next_state": torch.tensor([[0, 1]])}, "expected -1 or a state below 1"),
            ({"next_state": torch.tensor([[0, -2]])}, "found values -2 to 0"),
            ({"reward": torch.tensor([[0.0, math.inf]], dtype=torch.float64)}, "expected finite"),
            ({"discount": 1.0}, r"or 1 where every successor .* found 1.0"),
        ],
    )
    def test_tables_that_are_no_mdp_are_refused(self, change: dict, message: str):
        with pytest.raises(InvalidValueError, match=message):
            replace(self_loop(0.0, 0.0, discount=0.9), **change)

    @pytest.mark.parametrize(("vocabulary", "depth", "end"), [(1, 2, 0), (3, 0, 0), (3, 2, 3)])
    def test_trees_that_cannot_be_are_refused(self, vocabulary: int, depth: int, end: int):
        with pytest.raises(InvalidValueError, match="vocabulary_size >= 2"):
            tree(vocabulary, depth, end=end)
