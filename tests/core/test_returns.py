from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tdistill.core import (
    Transitions,
    discounted_sum,
    k_step_return,
    lambda_return,
    retrace_return,
    transitions,
)

LENGTHS, ENDED = (4, 1, 1, 6, 3), (True, True, False, False, True)
STEPS = sum(LENGTHS)


class World:
    """Random per-step quantities, with log pi = Q - V as everywhere in the library."""

    def __init__(self, gamma: float, *, seed: int = 0) -> None:
        noise = torch.Generator().manual_seed(seed)
        self.reward, self.value, self.q = torch.randn(3, STEPS, generator=noise).double().unbind(0)
        for leaf in (self.value, self.q):
            leaf.requires_grad_()
        self.links = transitions(torch.tensor(LENGTHS), torch.tensor(ENDED), discount=gamma)

    @property
    def path(self) -> tuple[Tensor, Tensor, Tensor, Transitions]:
        return self.reward, self.q - self.value, self.value, self.links

    def rows(self) -> list[tuple[int, int, bool]]:
        """First step, end and whether it ended, of every row."""
        starts = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
        return [(s, s + n, e) for s, n, e in zip(starts, LENGTHS, ENDED, strict=True)]

    def plain(self, horizon: int, gamma: float) -> dict[int, Tensor]:
        """The return of every step that has one, written out."""
        found = {}
        for start, stop, ended in self.rows():
            known = stop if ended else stop - 1  # states after `known` have no reward
            for t in range(start, known):
                last = min(t + horizon, known)
                total = self.reward[t]
                for j in range(t + 1, last):
                    total = total + gamma ** (j - t) * (self.reward[j] - self.q[j] + self.value[j])
                if last < stop:
                    total = total + gamma ** (last - t) * self.value[last]
                found[t] = total
        return found


def check_same(found: Tensor, expected: dict[int, Tensor], world: World) -> None:
    """Values, and the gradients of a weighted sum."""
    steps = list(expected)
    assert len(steps) == STEPS - ENDED.count(False)
    plain = torch.stack(list(expected.values()))
    torch.testing.assert_close(found[steps], plain)
    weights = torch.linspace(0.5, 1.5, len(steps)).double()
    slopes: list[Any] = [
        torch.autograd.grad((weights * x).sum(), [world.q, world.value], allow_unused=True)
        for x in (found[steps], plain)
    ]
    for one, other in zip(*slopes, strict=True):
        zero = torch.zeros(STEPS).double()
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("horizon", [1, 2, 3, 50])
def test_k_step_return_is_the_written_out_sum(horizon: int, gamma: float) -> None:
    world = World(gamma)
    check_same(k_step_return(*world.path, horizon=horizon), world.plain(horizon, gamma), world)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("trace", [0.0, 0.4, 1.0])
def test_lambda_return_is_the_mean_of_the_k_step_returns(trace: float, gamma: float) -> None:
    world, longest = World(gamma), max(LENGTHS)
    every = [world.plain(k, gamma) for k in range(1, longest + 1)]
    weights = [(1 - trace) * trace**k for k in range(longest - 1)]
    weights.append(trace ** (longest - 1))
    mixed = {
        t: torch.stack([w * one[t] for w, one in zip(weights, every, strict=True)]).sum()
        for t in every[0]
    }
    check_same(lambda_return(*world.path, trace=trace), mixed, world)


def test_the_ends_of_lambda_are_one_step_and_the_whole_row() -> None:
    world = World(0.9)
    known = world.links.can_bootstrap
    for trace, horizon in ((0.0, 1), (1.0, 99)):
        found = lambda_return(*world.path, trace=trace)[known]
        torch.testing.assert_close(found, k_step_return(*world.path, horizon=horizon)[known])


@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_a_return_less_q_is_the_discounted_sum_of_one_step_errors(horizon: int) -> None:
    world, gamma = World(0.9), 0.9
    target = k_step_return(*world.path, horizon=horizon)
    one = k_step_return(*world.path, horizon=1) - world.q
    for start, stop, ended in world.rows():
        known = stop if ended else stop - 1
        for t in range(start, known):
            parts = [gamma ** (j - t) * one[j] for j in range(t, min(t + horizon, known))]
            torch.testing.assert_close(target[t] - world.q[t], torch.stack(parts).sum())


@pytest.mark.parametrize("returns", ["k", "lambda"])
def test_gradcheck(returns: str) -> None:
    world = World(0.8)

    def target(q: Tensor, value: Tensor) -> Tensor:
        path = (world.reward, q - value, value, world.links)
        if returns == "k":
            return k_step_return(*path, horizon=3)
        return lambda_return(*path, trace=0.6)

    assert torch.autograd.gradcheck(target, (world.q, world.value))


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5), st.floats(0.0, 1.0), st.integers(0, 999)
)
def test_discounted_sums_are_the_sums_written_out(
    lengths: list[int], discount: float, seed: int
) -> None:
    rewards = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed)).double()
    follows = torch.tensor([k < n - 1 for n in lengths for k in range(n)])
    found = discounted_sum(rewards, follows, discount=discount)
    expected = [
        sum(discount**k * float(row[t + k]) for k in range(len(row) - t))
        for row in rewards.split(lengths)
        for t in range(len(row))
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_retrace_is_the_expected_return_and_cuts_unlikely_actions() -> None:
    """Hand-computed: two steps and the end, then a row that was cut."""
    links = transitions(torch.tensor([3, 2]), torch.tensor([True, False]), discount=0.5)
    reward = torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0])
    q_a = torch.tensor([4.0, 5.0, 6.0, 7.0, 8.0])
    value = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    ratio = torch.tensor([9.0, 0.5, 4.0, 1.0, 1.0]).log()
    found = retrace_return(reward, q_a, value, ratio, links, trace=0.5)
    last = 3.0
    second = 2.0 + 0.5 * (30.0 + 0.5 * 1.0 * (last - 6.0))  # a ratio above 1 counts as 1
    first = 1.0 + 0.5 * (20.0 + 0.5 * 0.5 * (second - 5.0))
    assert found[:3].tolist() == [first, second, last]
    assert found[3] == 1.0 + 0.5 * 50.0  # the step after it has no target
    one = retrace_return(reward, q_a, value, ratio, links, trace=0.0)
    assert one[:4].tolist() == [11.0, 17.0, 3.0, 26.0]
