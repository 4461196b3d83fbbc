from __future__ import annotations

import math

import padded
import pytest
import torch
from torch import Tensor

from tdistill.core import (
    expectation,
    policy_value,
    project,
    segment_max,
    segment_sum,
    soft_value,
    top_p_sets,
)


@pytest.fixture
def q(generator: torch.Generator) -> Tensor:
    return 3 * torch.randn(54, generator=generator, dtype=torch.float64)


def test_hand_computed_values():
    q = torch.tensor([0.0, math.log(3.0), -5.0], dtype=torch.float64)
    offsets = torch.tensor([0, 2, 3])
    expected = torch.tensor([math.log(4.0), -5.0], dtype=torch.float64)
    torch.testing.assert_close(soft_value(q, offsets), expected)
    expected = torch.tensor([0.5 * math.log(1 + 9), -5.0], dtype=torch.float64)
    torch.testing.assert_close(soft_value(q, offsets, temperature=0.5), expected)
    policy = torch.tensor([0.25, 0.75, 1.0], dtype=torch.float64).log()
    expected = torch.tensor([0.75 * math.log(3.0), -5.0], dtype=torch.float64)
    torch.testing.assert_close(expectation(q, policy, offsets), expected)
    expected[0] += 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    torch.testing.assert_close(policy_value(q, policy, offsets), expected)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_equals_the_padded_form(q: Tensor, offsets: Tensor, temperature: float):
    rows, real = padded.pad(q, offsets, 1e3)
    expected = padded.soft_value(rows, real, temperature)
    torch.testing.assert_close(soft_value(q, offsets, temperature=temperature), expected)
    policy = padded.project(rows.sin(), real)
    expected = padded.expectation(rows, policy, real)
    torch.testing.assert_close(expectation(q, policy[real], offsets), expected)


def test_value_is_expected_q_plus_entropy(q: Tensor, offsets: Tensor):
    policy = project(q, offsets)
    entropy = segment_sum(-policy.exp() * policy, offsets)
    expected = expectation(q, policy, offsets) + entropy
    torch.testing.assert_close(soft_value(q, offsets), expected)
    torch.testing.assert_close(policy_value(q, policy, offsets), soft_value(q, offsets))


def test_no_policy_is_worth_more_than_the_soft_value(q: Tensor, offsets: Tensor):
    other = project(q.cos() + q, offsets)
    gap = soft_value(q, offsets) - policy_value(q, other, offsets)
    divergence = expectation(other - project(q, offsets), other, offsets)
    torch.testing.assert_close(gap, divergence)
    assert (gap[offsets.diff() > 1] > 1e-6).all()


@pytest.mark.parametrize("temperature", [0.01, 1.0, 20.0])
def test_value_lies_between_max_and_max_plus_log_size(
    q: Tensor, offsets: Tensor, temperature: float
):
    value, peak = soft_value(q, offsets, temperature=temperature), segment_max(q, offsets)
    assert (value >= peak - 1e-12).all()
    assert (value <= peak + temperature * offsets.diff().log() + 1e-12).all()


def test_both_bounds_are_reached():
    offsets = torch.tensor([0, 8])
    tie = soft_value(torch.full((8,), 2.0, dtype=torch.float64), offsets)
    torch.testing.assert_close(tie, torch.tensor([2.0 + math.log(8)], dtype=torch.float64))
    sure = soft_value(torch.tensor([2.0] + [-900.0] * 7, dtype=torch.float64), offsets)
    assert sure.tolist() == [2.0]


def test_the_whole_vocabulary_gives_the_full_log_sum_exp(generator: torch.Generator):
    logits = torch.randn(4, 500, generator=generator, dtype=torch.float64)
    sets = top_p_sets(logits.log_softmax(-1), 1.0)
    value = soft_value(logits[sets.step, sets.ids], sets.offsets)
    torch.testing.assert_close(value, logits.logsumexp(-1))


def test_the_value_grows_with_the_set(generator: torch.Generator):
    logits = torch.randn(20, 100, generator=generator, dtype=torch.float64)
    values = []
    for p in (0.2, 0.5, 0.9, 1.0):
        sets = top_p_sets(logits.log_softmax(-1), p)
        values.append(soft_value(logits[sets.step, sets.ids], sets.offsets))
    assert (torch.stack(values).diff(dim=0) >= 0).all()


def test_the_gradient_of_the_value_is_the_policy(q: Tensor, offsets: Tensor):
    q.requires_grad_()
    (grad,) = torch.autograd.grad(soft_value(q, offsets, temperature=2.0).sum(), q)
    torch.testing.assert_close(grad, project(q / 2.0, offsets).exp())


def test_gradcheck(q: Tensor, offsets: Tensor):
    policy = project(q.cos(), offsets).detach().requires_grad_()
    q = q.requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda x: soft_value(x, offsets, temperature=0.7), q)
    assert check(lambda x, y: expectation(x, y, offsets), (q, policy))
    assert check(lambda x, y: policy_value(x, y, offsets), (q, policy))


def test_rows_do_not_depend_on_the_batch(q: Tensor, offsets: Tensor):
    q = q.float()
    together, rows = soft_value(q, offsets), q.tensor_split(offsets[1:-1])
    order = [3, 0, 5, 2, 4, 1]
    sizes = torch.tensor([0] + [rows[t].numel() for t in order])
    shuffled = soft_value(torch.cat([rows[t] for t in order]), sizes.cumsum(0))
    assert torch.equal(shuffled, together[order])
    for t, row in enumerate(rows):
        alone = soft_value(row, torch.tensor([0, row.numel()]))
        assert torch.equal(alone, together[t : t + 1])


def test_padding_changes_nothing(q: Tensor, offsets: Tensor):
    rows, real = padded.pad(q, offsets, -math.inf)
    wider = torch.cat([rows, torch.full((6, 9), -math.inf, dtype=q.dtype)], 1)
    padded_offsets = torch.arange(7) * wider.shape[1]
    value = soft_value(wider.flatten(), padded_offsets)
    torch.testing.assert_close(value, soft_value(q, offsets))
    assert torch.equal(padded.soft_value(wider, torch.isfinite(wider)).isnan(), value.isnan())
    assert real.sum() == q.numel()


def test_no_steps():
    assert soft_value(torch.zeros(0), torch.tensor([0])).shape == (0,)
    assert policy_value(torch.zeros(0), torch.zeros(0), torch.tensor([0])).shape == (0,)


@pytest.mark.parametrize("size", [3, 300, 50_000])
def test_float32_is_no_less_accurate_than_the_padded_form(size: int, generator: torch.Generator):
    q = 3 * torch.randn(200_000 // size, size, generator=generator)
    offsets = torch.arange(q.shape[0] + 1) * size
    policy = q.log_softmax(-1)
    exact = q.double()
    exact_policy = policy.double()
    pairs = [
        (soft_value(q.flatten(), offsets), q.logsumexp(-1), exact.logsumexp(-1)),
        (
            expectation(q.flatten(), policy.flatten(), offsets),
            (policy.exp() * q).sum(-1),
            (exact_policy.exp() * exact).sum(-1),
        ),
    ]
    for ragged, plain, truth in pairs:
        ragged_error = (ragged.double() - truth).abs()
        plain_error = (plain.double() - truth).abs()
        unit = torch.finfo(torch.float32).eps * truth.abs().max()
        assert ragged_error.max() <= plain_error.max() + unit / 2
        assert ragged_error.mean() <= 1.05 * plain_error.mean() + unit / 8
