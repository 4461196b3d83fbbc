"""Classes that tie states together: what (9.3) keeps of its promise there, and the best policy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdistill.errors import InvalidValueError
from tdistill.tabular import (
    TERMINAL,
    TiedStates,
    TokenMDP,
    best_cloner,
    best_tied_policy,
    occupancy,
    prefix_tree,
    project_policy,
    random_mdp,
    safe_share,
    soft_improvement,
    soft_return,
    state_kl,
    tied_step,
    top_p_mask,
    with_log_teacher,
)

on_every_draw = settings(deadline=None, max_examples=20, derandomize=True)
few = settings(deadline=None, max_examples=4, derandomize=True)
seeds = st.integers(0, 2**31)


@dataclass(frozen=True, eq=False)
class World:
    """A teacher, a class, a policy of the class, and how deep each state lies."""

    mdp: TokenMDP
    teacher: Tensor
    tied: TiedStates
    policy: Tensor
    level: Tensor


def tree_world(seed: int, *, discount: float = 1.0, rows: int = 2, depth: int = 3) -> World:
    """A tree of 3 tokens whose states of a level share ``rows`` rows; one set for all of a row."""
    generator = torch.Generator().manual_seed(seed)
    mdp = prefix_tree(3, depth, discount=discount, reward_scale=0.0, generator=generator)
    level = (torch.arange(mdp.num_states) + 1).log2().floor().long()
    drawn = level * rows + torch.randint(rows, level.shape, generator=generator)
    part = drawn.unique(return_inverse=True)[1]
    noise = 1.5 * torch.randn(2, mdp.num_states, 3, generator=generator).double()
    allowed = torch.rand(mdp.num_states, 3, generator=generator)[part] < 0.7
    allowed[:, 1] = True
    tied = TiedStates(part, allowed)
    teacher = project_policy(noise[0].softmax(1), allowed)
    mdp = with_log_teacher(mdp, teacher)
    return World(mdp, teacher, tied, tied.policy(noise[1]), level)


def cyclic_world(seed: int, discount: float) -> World:
    """States that come back, any of them tied to any other."""
    generator = torch.Generator().manual_seed(seed)
    mdp = random_mdp(6, 3, discount=discount, reward_scale=0.0, end_share=0.1, generator=generator)
    noise = 1.5 * torch.randn(2, 6, 3, generator=generator).double()
    part = torch.randint(3, (6,), generator=generator).unique(return_inverse=True)[1]
    tied = TiedStates(part, mdp.full_vocabulary)
    teacher = noise[0].softmax(1)
    mdp = with_log_teacher(mdp, teacher)
    return World(mdp, teacher, tied, tied.policy(noise[1]), torch.zeros(6))


worlds = st.one_of(
    st.builds(tree_world, seeds, discount=st.sampled_from([1.0, 0.6]), rows=st.integers(1, 3)),
    st.builds(cyclic_world, seeds, discount=st.sampled_from([0.5, 0.95])),
)
trees = st.builds(tree_world, seeds, discount=st.sampled_from([1.0, 0.6]), rows=st.integers(1, 3))


def value(world: World, policy: Tensor) -> float:
    return float(soft_return(world.mdp, policy)[0])


def by_hand() -> World:
    """Two branches with opposite teachers and one row for both."""
    mdp = TokenMDP(
        torch.tensor([[1, 2], [TERMINAL, TERMINAL], [TERMINAL, TERMINAL]]),
        torch.zeros(3, 2).double(),
        1.0,
    )
    teacher = torch.tensor([[0.5, 0.5], [0.99, 0.01], [0.01, 0.99]]).double()
    tied = TiedStates(torch.tensor([0, 1, 1]), mdp.full_vocabulary)
    policy = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.4, 0.6]]).double()
    return World(with_log_teacher(mdp, teacher), teacher, tied, policy, torch.tensor([0, 1, 1]))


class TestStep:
    @on_every_draw
    @given(worlds)
    def test_the_gain_is_the_advantage_at_the_visits_of_the_new_policy(self, world: World):
        mdp, old = world.mdp, world.policy
        new = tied_step(mdp, old, world.tied)
        target = soft_improvement(mdp, world.teacher, old)
        advantage = state_kl(old, target) - state_kl(new, target)
        gain = occupancy(mdp, new) @ advantage
        assert float(gain) == pytest.approx(value(world, new) - value(world, old), abs=1e-11)

    @on_every_draw
    @given(worlds, seeds)
    def test_no_other_row_is_nearer_to_the_targets(self, world: World, seed: int):
        mdp, old, tied = world.mdp, world.policy, world.tied
        target, weight = soft_improvement(mdp, world.teacher, old), occupancy(mdp, old)
        new = tied_step(mdp, old, tied)
        noise = torch.randn(tied.num_parts, 3, generator=torch.Generator().manual_seed(seed))
        other = tied.policy(noise.double() + new.clamp(min=1e-9).log()[first_of_parts(tied)])
        distance = weight @ state_kl(new, target)
        assert distance <= weight @ state_kl(other, target) + 1e-12

    @on_every_draw
    @given(worlds)
    def test_alone_in_its_part_every_visited_state_takes_the_free_step(self, world: World):
        free = TiedStates(torch.arange(len(world.policy)), world.tied.allowed)
        found = tied_step(world.mdp, world.policy, free)
        expected = soft_improvement(world.mdp, world.teacher, world.policy)
        visited = occupancy(world.mdp, world.policy) > 1e-12
        torch.testing.assert_close(found[visited], expected[visited])

    @on_every_draw
    @given(trees, st.integers(0, 2))
    def test_rows_that_are_never_visited_after_another_go_to_their_joint_maximum(
        self, world: World, level: int
    ):
        tied = world.tied
        moved = torch.zeros(tied.num_parts, dtype=torch.bool)
        moved[tied.part[world.level == level]] = True
        new = tied_step(world.mdp, world.policy, tied, moved=moved)
        assert value(world, new) >= value(world, world.policy) - 1e-13
        assert torch.equal(new[~moved[tied.part]], world.policy[~moved[tied.part]])
        scores = new[first_of_parts(tied)].clamp(min=1e-300).log().requires_grad_()
        policy = tied.policy(scores)
        (slope,) = torch.autograd.grad(soft_return(world.mdp, policy)[0], scores)
        assert slope[moved].abs().max() < 1e-12

    @on_every_draw
    @given(worlds)
    def test_a_safe_share_of_a_step_of_all_rows_gains_what_is_proved(self, world: World):
        mdp, policy = world.mdp, world.policy
        for _ in range(3):
            whole = tied_step(mdp, policy, world.tied)
            share = safe_share(mdp, policy, whole)
            new = tied_step(mdp, policy, world.tied, share=share)
            target = soft_improvement(mdp, world.teacher, policy)
            nearer = state_kl(policy, target) - state_kl(whole, target)
            proved = share * float(occupancy(mdp, policy) @ nearer) / 2.0
            assert proved >= -1e-15
            assert value(world, new) - value(world, policy) >= proved - 1e-12
            assert 0.0 <= share <= 1.0
            policy = new

    def test_a_whole_step_of_all_rows_can_lower_the_value(self):
        """Each row moves for visits that the other takes away; repeated, it gets worse for good."""
        world = by_hand()
        policy, values = world.policy, [value(world, world.policy)]
        for _ in range(6):
            policy = tied_step(world.mdp, policy, world.tied)
            values.append(value(world, policy))
        assert values == pytest.approx(
            [-1.747, -2.229, -3.573, -4.761, -5.039, -5.072, -5.076], abs=1e-3
        )

        policy, values = world.policy, values[:1]
        for row in (0, 1):
            policy = tied_step(world.mdp, policy, world.tied, moved=torch.arange(2) == row)
            values.append(value(world, policy))
        assert values == sorted(values)

    def test_the_best_of_a_class_can_be_worse_in_a_state(self):
        world = by_hand()
        best = best_tied_policy(
            world.mdp, world.tied, world.tied.starts(8, torch.Generator().manual_seed(0))
        )
        gain = soft_return(world.mdp, best) - soft_return(world.mdp, world.policy)
        assert gain[0] > 0.5
        assert gain[1:].min() < -1.0

    def test_a_part_without_visits_stays(self):
        world = by_hand()
        tied = TiedStates(torch.tensor([0, 1, 2]), world.tied.allowed)
        policy = torch.tensor([[1.0, 0.0], [0.4, 0.6], [0.3, 0.7]]).double()
        new = tied_step(world.mdp, policy, tied)
        assert new[2].tolist() == policy[2].tolist()
        assert new[1].tolist() == pytest.approx([0.99, 0.01])

    def test_parts_of_several_sets_have_no_closed_step(self):
        world = by_hand()
        allowed = torch.tensor([[True, True], [True, True], [True, False]])
        with pytest.raises(InvalidValueError, match="one action set for all states of a part"):
            tied_step(world.mdp, world.policy, TiedStates(world.tied.part, allowed))


def first_of_parts(tied: TiedStates) -> Tensor:
    """A state of every part."""
    return torch.stack([(tied.part == part).nonzero()[0, 0] for part in range(tied.num_parts)])


class TestBest:
    @few
    @given(seeds, st.sampled_from([0.7, 1.0]))
    def test_it_is_the_teacher_where_the_class_holds_it(self, seed: int, set_top_p: float):
        """States that share a row of the teacher's, though not always a set."""
        generator = torch.Generator().manual_seed(seed)
        mdp = prefix_tree(3, 3, discount=1.0, reward_scale=0.0, generator=generator)
        part = (torch.randperm(7, generator=generator) % 3).unique(return_inverse=True)[1]
        scores = torch.randn(3, 3, generator=generator).double()
        allowed = top_p_mask(scores[part].softmax(1), set_top_p)
        tied = TiedStates(part, allowed)
        teacher = tied.policy(scores)
        mdp = with_log_teacher(mdp, teacher)
        reached = occupancy(mdp, teacher) > 0
        best = best_tied_policy(mdp, tied, tied.starts(3, generator))
        for found in (best, best_cloner(mdp, teacher, tied)):
            assert -1e-10 < float(soft_return(mdp, found)[0]) <= 1e-13
            torch.testing.assert_close(found[reached], teacher[reached], rtol=0, atol=1e-5)

    @few
    @given(seeds)
    @pytest.mark.slow
    def test_no_policy_of_a_fine_grid_is_better_and_the_best_of_it_is_near(self, seed: int):
        """Corners, the deterministic policies, are among them."""
        generator = torch.Generator().manual_seed(seed)
        mdp = prefix_tree(3, 2, discount=1.0, reward_scale=0.0, generator=generator)
        teacher = (2.0 * torch.randn(3, 3, generator=generator).double()).softmax(1)
        mdp = with_log_teacher(mdp, teacher)
        tied = TiedStates(torch.tensor([0, 1, 1]), mdp.full_vocabulary)
        best = soft_return(mdp, best_tied_policy(mdp, tied, tied.starts(6, generator)))[0]
        steps = 16
        rows = torch.tensor(
            [(a, b, steps - a - b) for a in range(steps + 1) for b in range(steps + 1 - a)]
        ).double()
        rows = rows / steps
        cost = [state_kl(rows, teacher[s].expand_as(rows)) for s in range(3)]
        after = rows[:, 1:2] * cost[1] + rows[:, 2:3] * cost[2]  # of each root and each shared row
        on_grid = -(cost[0][:, None] + after)
        assert on_grid.max() <= best + 1e-12
        assert on_grid.max() >= best - 0.05
        for root, leaf in product([0, 20, 152], [3, 77]):  # the grid's values are the module's
            policy = rows[torch.tensor([root, leaf, leaf])]
            torch.testing.assert_close(soft_return(mdp, policy)[0], on_grid[root, leaf])

    @few
    @given(seeds)
    def test_it_does_not_move(self, seed: int):
        world = tree_world(seed)
        generator = torch.Generator().manual_seed(seed)
        best = best_tied_policy(world.mdp, world.tied, world.tied.starts(4, generator))
        often = occupancy(world.mdp, best) > 1e-3
        step = tied_step(world.mdp, best, world.tied)
        torch.testing.assert_close(step[often], best[often], rtol=0, atol=1e-4)
        cloner = best_cloner(world.mdp, world.teacher, world.tied)
        # Where the class holds the teacher both are 0 but for what is rounded.
        assert value(world, best) >= value(world, cloner) - 1e-12

    @few
    @given(seeds)
    def test_the_best_cloner_is_the_teachers_mean_over_its_own_visits(self, seed: int):
        world = cyclic_world(seed, 0.9)
        weight = occupancy(world.mdp, world.teacher)
        members = torch.nn.functional.one_hot(world.tied.part).T * weight
        mean = (members @ world.teacher) / members.sum(1, keepdim=True)
        seen = members.sum(1) > 1e-9
        found = best_cloner(world.mdp, world.teacher, world.tied)[first_of_parts(world.tied)]
        torch.testing.assert_close(found[seen], mean[seen], rtol=0, atol=1e-5)
