from __future__ import annotations

import math

import pytest
import torch

from tdistill.core import WeightedSum, masked_sum

VALUES = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0])
MASK = torch.tensor([True, True, False, True, True])


def test_hand_computed_values():
    pair = masked_sum(VALUES, MASK)
    assert (pair.total.item(), pair.weight.item(), pair.mean()) == (33.0, 4.0, 8.25)


@pytest.mark.parametrize("split", [[5], [1, 4], [2, 2, 1], [1, 1, 1, 1, 1]])
def test_uneven_batches_do_not_bias_the_mean(split: list[int]):
    parts = zip(VALUES.split(split), MASK.split(split), strict=True)
    total = WeightedSum(torch.tensor(0.0), torch.tensor(0.0))
    for values, mask in parts:
        total = total + masked_sum(values, mask)
    assert total.mean() == 8.25


def test_padding_may_hold_anything():
    padding = torch.tensor([math.nan, math.inf, -math.inf])
    pair = masked_sum(torch.cat([VALUES, padding]), torch.cat([MASK, torch.zeros(3).bool()]))
    assert (pair.total.item(), pair.weight.item()) == (33.0, 4.0)


def test_nothing_weighed_has_no_mean():
    assert math.isnan(masked_sum(VALUES, torch.zeros(5).bool()).mean())


def test_masked_steps_get_no_gradient():
    values = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    masked_sum(values, torch.tensor([True, False, True])).total.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0, 1.0]


def test_gradcheck():
    values = VALUES.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: masked_sum(v, MASK).total, values)
