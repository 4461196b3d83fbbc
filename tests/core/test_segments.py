from __future__ import annotations

import math

import padded
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from tdistill.core import (
    kept_offsets,
    row_index,
    segment_cumsum,
    segment_logsumexp,
    segment_max,
    segment_sum,
)

NO_ROWS = torch.tensor([0])
EMPTY_ROW = torch.tensor([0, 2, 2, 5])


def test_hand_computed_values_with_an_empty_row():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    assert row_index(EMPTY_ROW, 5).tolist() == [0, 0, 2, 2, 2]
    assert segment_sum(values, EMPTY_ROW).tolist() == [3.0, 0.0, 28.0]
    assert segment_max(values, EMPTY_ROW).tolist() == [2.0, -math.inf, 16.0]
    assert segment_cumsum(values, EMPTY_ROW).tolist() == [1.0, 3.0, 4.0, 12.0, 28.0]
    log_sums = segment_logsumexp(values.log(), EMPTY_ROW).exp()
    torch.testing.assert_close(log_sums, torch.tensor([3.0, 0.0, 28.0]))


def test_no_rows():
    none = torch.zeros(0)
    assert row_index(NO_ROWS, 0).shape == (0,)
    for function in (segment_sum, segment_max, segment_logsumexp, segment_cumsum):
        assert function(none, NO_ROWS).shape == (0,)


def test_equals_the_padded_form(offsets: Tensor, generator: torch.Generator):
    values = torch.randn(54, generator=generator, dtype=torch.float64)
    values[5] = -math.inf
    rows, real = padded.pad(values, offsets, -math.inf)
    torch.testing.assert_close(segment_logsumexp(values, offsets), rows.logsumexp(-1))
    assert torch.equal(segment_max(values, offsets), rows.amax(-1))
    sums = rows.exp().masked_fill(~real, 0.0).sum(-1)
    torch.testing.assert_close(segment_sum(values.exp(), offsets), sums)
    running = rows.exp().cumsum(-1)[real]
    torch.testing.assert_close(segment_cumsum(values.exp(), offsets), running)


@pytest.mark.parametrize("peak", [-1e4, 1e4])
def test_logsumexp_neither_overflows_nor_underflows(peak: float):
    values = torch.tensor([0.0, 0.0, -math.inf]) + peak
    expected = torch.tensor([peak + math.log(2)])
    torch.testing.assert_close(segment_logsumexp(values, torch.tensor([0, 3])), expected)


def test_logsumexp_of_impossible_members():
    values = torch.full((3,), -math.inf)
    assert segment_logsumexp(values, torch.tensor([0, 3])).tolist() == [-math.inf]


def test_the_gradient_at_a_minus_infinite_member_is_zero():
    values = torch.tensor([0.0, -math.inf, 0.0], requires_grad=True)
    segment_logsumexp(values, torch.tensor([0, 3])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("function", [segment_sum, segment_max, segment_logsumexp])
def test_gradcheck(function, offsets: Tensor, generator: torch.Generator):
    values = torch.randn(54, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: function(v, offsets), values)


def test_the_running_sum_does_not_depend_on_other_rows(generator: torch.Generator):
    # 6,000 rows of mass 1 pass the range of the integers inside, and lose digits in floats.
    row = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    alone = segment_cumsum(row, torch.tensor([0, 4]))
    others = torch.rand(6_000, 7, generator=generator, dtype=torch.float64)
    others = (others / others.sum(1, keepdim=True)).flatten()
    offsets = torch.cat([torch.arange(6_001) * 7, torch.tensor([42_004])])
    assert torch.equal(segment_cumsum(torch.cat([others, row]), offsets)[-4:], alone)
    assert torch.allclose(alone, row.cumsum(0), rtol=0, atol=1e-15)


def test_sums_of_50k_float32_members_keep_their_digits(generator: torch.Generator):
    values = torch.randn(8, 50_000, generator=generator) * 3
    offsets = torch.arange(9) * 50_000
    truth = values.double().logsumexp(1)
    ragged = (segment_logsumexp(values.flatten(), offsets).double() - truth).abs().max()
    plain = (values.logsumexp(1).double() - truth).abs().max()
    assert ragged <= plain + 2**-21  # half a unit of float32 at 15 nats


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype(dtype: torch.dtype):
    ones = torch.ones(5, dtype=dtype)
    for function in (segment_sum, segment_max, segment_logsumexp):
        assert function(ones, EMPTY_ROW).dtype == dtype


def test_shapes_are_checked_under_test():
    with pytest.raises(TypeCheckError):
        segment_sum(torch.ones(2, 3), EMPTY_ROW)
    with pytest.raises(TypeCheckError):
        segment_sum(torch.ones(5), EMPTY_ROW.double())


def test_offsets_of_the_members_that_are_kept():
    keep = torch.tensor([False, False, True, True, False])
    assert kept_offsets(keep, EMPTY_ROW).tolist() == [0, 0, 0, 2]
    assert kept_offsets(~keep, EMPTY_ROW).tolist() == [0, 2, 2, 3]
    assert kept_offsets(keep[:0], NO_ROWS).tolist() == [0]
