from __future__ import annotations

import math

import pytest
import torch

from tdistill.core import kappa, sampled_gap_bound
from tdistill.errors import InvalidValueError

LENGTHS = torch.tensor([3, 1, 4])
LOSS = torch.tensor([9.0, 1.0, 2.0, 5.0, 7.0, 0.5, 0.25, 4.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.5, 68.6), (0.8, 22.1), (0.9, 10.4), (0.95, 5.08), (0.99, 0.995), (0.999, 0.0990)],
)
def test_kappa_at_the_usual_masses(p: float, expected: float):
    assert kappa(p, 0.99) == pytest.approx(expected, rel=4e-3)


def test_kappa_at_the_ends():
    assert kappa(1.0, 0.99) == 0.0
    assert kappa(0.3, 0.0) == 0.0
    assert kappa(math.exp(-1), 0.5) == pytest.approx(1.0)


@pytest.mark.parametrize("discount", [-0.1, 1.0, 1.5, math.nan])
def test_kappa_refuses_a_discount_out_of_range(discount: float):
    with pytest.raises(
        InvalidValueError, match=rf"discount: expected a value in \[0, 1\), found {discount}"
    ):
        kappa(0.8, discount)


@pytest.mark.parametrize("p", [0.0, 1.1])
def test_kappa_refuses_a_mass_out_of_range(p: float):
    with pytest.raises(InvalidValueError, match=rf"set_top_p: expected .* found {p}"):
        kappa(p, 0.9)


def test_hand_computed_bound():
    found = sampled_gap_bound(LOSS, LENGTHS, discount=0.5)
    assert found.tolist() == [0.5 + 0.5, 1.0, 0.0, 0.0, 0.25 + 0.0625 + 0.5, 0.125 + 1.0, 2.0, 0.0]


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_equals_the_sum_as_written(discount: float):
    found = sampled_gap_bound(LOSS, LENGTHS, discount=discount).split(LENGTHS.tolist())
    for response, bound in zip(LOSS.split(LENGTHS.tolist()), found, strict=True):
        for t in range(len(response)):
            later = response[t + 1 :].tolist()
            expected = sum(discount**k * x for k, x in enumerate(later, start=1))
            assert bound[t].item() == pytest.approx(expected, abs=1e-14)


def test_a_constant_loss_approaches_kappa():
    constant = torch.full((4_000,), -math.log(0.8), dtype=torch.float64)
    found = sampled_gap_bound(constant, torch.tensor([4_000]), discount=0.99)
    assert found[0].item() == pytest.approx(kappa(0.8, 0.99), rel=1e-12)
    assert (found <= kappa(0.8, 0.99) + 1e-12).all()


@pytest.mark.parametrize("order", [[2, 0, 1], [1], [0, 2]])
def test_responses_do_not_depend_on_their_neighbours(order: list[int]):
    together = sampled_gap_bound(LOSS, LENGTHS, discount=0.9).split(LENGTHS.tolist())
    mine = torch.cat([LOSS.split(LENGTHS.tolist())[i] for i in order])
    found = sampled_gap_bound(mine, LENGTHS[order], discount=0.9)
    assert torch.equal(found, torch.cat([together[i] for i in order]))


def test_no_responses():
    assert sampled_gap_bound(LOSS[:0], LENGTHS[:0], discount=0.9).shape == (0,)


def test_gradcheck():
    loss = LOSS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sampled_gap_bound(x, LENGTHS, discount=0.7), loss)
