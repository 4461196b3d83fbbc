from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from tdistill.core import implied_reward, soft_bellman_backup, td_error

DISCOUNT = torch.tensor([0.5, 0.99, 0.0], dtype=torch.float64)


def test_hand_computed_values():
    following = torch.tensor([10.0, -2.0, 7.0], dtype=torch.float64)
    q_a = torch.tensor([6.0, 1.0, 3.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 2.98, 3.0], dtype=torch.float64)
    torch.testing.assert_close(implied_reward(q_a, following, DISCOUNT), expected)
    torch.testing.assert_close(soft_bellman_backup(expected, following, DISCOUNT), q_a)


def test_td_error_by_hand() -> None:
    q_a, reward, following = torch.tensor([4.0, 4.0]), torch.ones(2), torch.tensor([10.0, 10.0])
    found = td_error(q_a, reward, following, torch.tensor([0.5, 0.0]))
    assert found.tolist() == [2.0, -3.0]


def test_backup_and_implied_reward_undo_each_other(generator: torch.Generator):
    x, following = 10 * torch.randn(2, 1_000, generator=generator, dtype=torch.float64)
    discount = torch.rand(1_000, generator=generator, dtype=torch.float64)
    there = implied_reward(soft_bellman_backup(x, following, discount), following, discount)
    back = soft_bellman_backup(implied_reward(x, following, discount), following, discount)
    torch.testing.assert_close(there, x, rtol=0, atol=1e-13)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-13)


def test_the_end_takes_nothing_from_the_successor():
    huge = torch.full((1,), 1e30)
    zero, one = torch.zeros(1), torch.ones(1)
    assert implied_reward(one, huge, zero).tolist() == [1.0]
    assert soft_bellman_backup(one, huge, zero).tolist() == [1.0]


@pytest.mark.parametrize("function", [implied_reward, soft_bellman_backup])
def test_gradcheck(function, generator: torch.Generator):
    inputs = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: function(x[0], x[1], DISCOUNT), inputs)


def test_lengths_that_would_broadcast_are_refused_under_test():
    with pytest.raises(TypeCheckError, match="next_value"):
        implied_reward(torch.ones(3), torch.ones(1), torch.ones(3))
