from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tdistill.core import (
    advantage,
    expectation,
    project,
    reverse_kl_terms,
    segment_logsumexp,
    segment_sum,
    soft_actor_terms,
    spread,
    state_cost,
    tilt,
    token_sums,
)

OFFSETS = torch.tensor([0, 3, 4, 8])


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log T, log pi and g on three sets of 3, 1 and 4 members."""
    generator = torch.Generator().manual_seed(seed)
    a, b, g = 2 * torch.randn(3, 8, generator=generator, dtype=torch.float64)
    return project(a, OFFSETS), project(b, OFFSETS), g.abs()


@given(st.integers(0, 1000), st.floats(0.0, 5.0))
def test_the_tilted_policy_is_the_best_for_cost_and_divergence(seed: int, strength: float) -> None:
    teacher, other, g = drawn(seed)
    tilted = tilt(teacher, g, OFFSETS, strength=strength)
    torch.testing.assert_close(segment_logsumexp(tilted, OFFSETS), torch.zeros(3).double())

    def price(policy: torch.Tensor) -> torch.Tensor:
        return segment_sum(soft_actor_terms(teacher, policy, strength * g), OFFSETS)

    assert bool((price(tilted) <= price(other) + 1e-9).all())
    partition = segment_logsumexp(teacher - strength * g, OFFSETS)
    torch.testing.assert_close(price(tilted), -partition)  # (9.5) = KL(pi || q) - log Z
    gap = segment_sum(reverse_kl_terms(tilted, other), OFFSETS)
    torch.testing.assert_close(price(other), gap - partition)


@given(st.integers(0, 1000))
def test_a_constant_of_the_state_tilts_nothing(seed: int) -> None:
    teacher, _, g = drawn(seed)
    torch.testing.assert_close(
        tilt(teacher, advantage(g, teacher, OFFSETS), OFFSETS), tilt(teacher, g, OFFSETS)
    )
    torch.testing.assert_close(tilt(teacher, g, OFFSETS, strength=0.0), teacher)


@given(st.integers(0, 1000))
def test_advantages_have_mean_0_and_their_spread_is_their_deviation(seed: int) -> None:
    teacher, _, g = drawn(seed)
    centred = advantage(g, teacher, OFFSETS)
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(expectation(centred, teacher, OFFSETS), zero)
    variance = expectation(g**2, teacher, OFFSETS) - expectation(g, teacher, OFFSETS) ** 2
    torch.testing.assert_close(spread(g, teacher, OFFSETS) ** 2, variance, rtol=1e-6, atol=1e-9)
    assert spread(g, teacher, OFFSETS)[1] == 0.0  # one member: nothing to choose


def test_the_cost_of_a_state_is_its_own_and_what_is_expected() -> None:
    teacher, _, g = drawn(1)
    cost = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    expected = [
        float(c + (t.exp() * x).sum())
        for c, t, x in zip(cost, teacher.split([3, 1, 4]), g.split([3, 1, 4]), strict=True)
    ]
    assert state_cost(cost, g, teacher, OFFSETS).tolist() == expected


def test_token_sums_take_weights_of_another_precision() -> None:
    total, weight = token_sums(
        torch.ones(3).double(), torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), 4
    )
    assert total.tolist() == [2.0, 0.0, 5.0, 0.0] == weight.tolist()
    assert weight.dtype == torch.float64


def test_without_a_future_the_actor_pays_the_reverse_kl() -> None:
    teacher, student, g = drawn(2)
    torch.testing.assert_close(
        soft_actor_terms(teacher, student, 0 * g), reverse_kl_terms(teacher, student)
    )
