"""The rounding of evidence: monotone, idempotent, and off by no more than it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tdistill.teacher.cache.rounding import (
    level_table,
    levels_of,
    round_log_probs,
    round_normaliser,
)


@pytest.mark.parametrize(
    ("low", "bound"),
    [(-0.06, 2.0**-14), (-0.5, 2.0**-11), (-2.0, 2.0**-9), (-16.0, 2.0**-8), (-499.0, 2.0**-8)],
)
def test_the_rounding_error_is_the_documented_one(low: float, bound: float):
    exact = torch.linspace(low, 0.0, 100_001, dtype=torch.float64)
    error = (round_log_probs(exact).double() - exact.float().double()).abs()
    assert bound / 2.2 < error.max() <= bound * (1 + 1e-4)
    assert bound <= 0.004
    likely = (exact > -2.0) & (exact < -(2.0**-4))
    assert (error <= -exact / 512 * (1 + 1e-4))[likely].all()


def test_rounding_keeps_order_and_stays_put():
    exact = -torch.logspace(-6, 3, 200_001, base=10.0)
    rounded = round_log_probs(exact)
    assert (rounded.diff() <= 0).all()
    assert torch.equal(round_log_probs(rounded), rounded)
    ends = round_log_probs(torch.tensor([float("-inf"), -1e6, -1e-9, 0.0]))
    assert ends.tolist() == [-499.9921875, -499.9921875, 0.0, 0.0]
    assert not ends.signbit()[2:].any()
    assert round_log_probs(exact.double()).dtype == torch.float32
    assert round_log_probs(torch.tensor([float("nan")])).isnan().all()


def test_levels_and_log_probabilities_are_one_to_one():
    table = level_table()
    assert (np.diff(table) < 0).all()
    assert np.array_equal(levels_of(table), np.arange(len(table)))
    assert torch.equal(round_log_probs(torch.from_numpy(table)), torch.from_numpy(table))
    exact = -16.0 * np.random.default_rng(0).random(10_000).astype(np.float32)
    rounded = round_log_probs(torch.from_numpy(exact)).numpy()
    assert np.array_equal(table[levels_of(exact)], rounded)


def test_log_normalisers_are_rounded_to_a_thousandth():
    exact = torch.linspace(-120.0, 120.0, 100_001)
    rounded = round_normaliser(exact)
    assert (rounded - exact).abs().max() <= 0.001
    assert torch.equal(round_normaliser(rounded), rounded)
    assert not round_normaliser(torch.tensor([-1e-6])).signbit().any()
    assert round_normaliser(torch.tensor([1e9])).tolist() == [8192.0]
