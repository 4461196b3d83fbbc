from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from tdistill.errors import InvalidValueError
from tdistill.evaluation.intervals import Interval, Sample, crossed_interval


def sample(values: Any, weights: Any = None) -> Sample:
    return Sample(
        np.asarray(values, np.float64), None if weights is None else np.asarray(weights, np.float64)
    )


def bootstrap_interval(values: Any, *, weights: Any = None, **options: Any) -> Interval:
    """That of one training seed."""
    return crossed_interval([sample(values, weights)], **options)


def paired_interval(
    a: Any, b: Any, *, a_weights: Any = None, b_weights: Any = None, **options: Any
) -> Interval:
    """That of one training seed, less another method's."""
    return crossed_interval([sample(a, a_weights)], [sample(b, b_weights)], **options)


def test_two_prompts_by_hand() -> None:
    # The draws are (0, 0), (0, 10), (10, 0), (10, 10): means 0, 5, 10 with chances 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 10.0]) == Interval(5.0, 0.0, 10.0)
    # The middle 40% is inside the half that draws one of each.
    assert bootstrap_interval([0.0, 10.0], level=0.4) == Interval(5.0, 5.0, 5.0)


def test_three_prompts_against_all_draws() -> None:
    values, weights = np.array([1.0, 4.0, 30.0]), np.array([1.0, 2.0, 5.0])
    draws = [
        values[list(rows)].sum() / weights[list(rows)].sum()
        for rows in itertools.product(range(3), repeat=3)
    ]
    result = bootstrap_interval(values, weights=weights, level=0.8)
    assert result.mean == 35 / 8
    # 27 equally likely draws: the quantiles at 0.1 and 0.9 are the 3rd and the 25th smallest.
    assert (result.low, result.high) == (sorted(draws)[2], sorted(draws)[24])


def test_the_mean_is_over_prompts_and_seeds() -> None:
    assert bootstrap_interval([[1.0, 3.0], [5.0, 7.0]]).mean == 4.0
    ratio = bootstrap_interval([[6.0, 0.0], [2.0, 4.0]], weights=[[3, 0], [1, 2]])
    assert ratio == Interval(2.0, 2.0, 2.0)
    assert bootstrap_interval([6.0, 2.0], weights=[1.0, 3.0]).mean == 2.0


def test_a_seed_axis_of_one_changes_nothing() -> None:
    values = np.random.default_rng(1).normal(size=20)
    assert bootstrap_interval(values[:, None]) == bootstrap_interval(values)
    # Equal seeds carry no more information than one.
    repeated = bootstrap_interval(np.repeat(values[:, None], 4, axis=1))
    single = bootstrap_interval(values)
    assert dataclasses.astuple(repeated) == pytest.approx(dataclasses.astuple(single))


def test_one_prompt_has_no_bounds() -> None:
    assert bootstrap_interval([3.0]) == Interval(3.0, None, None)
    assert bootstrap_interval([[1.0, 5.0]]) == Interval(3.0, None, None)
    assert bootstrap_interval([6.0, 0.0], weights=[2.0, 0.0]) == Interval(3.0, None, None)
    assert paired_interval([3.0], [1.0]) == Interval(2.0, None, None)
    row = bootstrap_interval([3.0]).to_dict()
    assert json.dumps(row) == '{"mean": 3.0, "low": null, "high": null}'


def test_draws_of_weightless_prompts_are_left_out() -> None:
    # 0 and 2 of 4 prompts have tokens: one draw in 16 has none, and every other has the ratio 2.
    result = bootstrap_interval([4.0, 0.0, 6.0, 0.0], weights=[2.0, 0.0, 3.0, 0.0])
    assert result == Interval(2.0, 2.0, 2.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(2).normal(size=(30, 3))
    first = bootstrap_interval(values, seed=5)
    assert first == bootstrap_interval(values, seed=5)
    assert first != bootstrap_interval(values, seed=6)


def test_shift_and_scale_carry_over() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    plain, moved = bootstrap_interval(values), bootstrap_interval(10 + 2 * values)
    expected = 10 + 2 * np.array(dataclasses.astuple(plain))
    assert dataclasses.astuple(moved) == pytest.approx(expected)


def test_a_higher_level_is_wider() -> None:
    values = np.random.default_rng(4).normal(size=40)
    narrow, wide = (bootstrap_interval(values, level=level) for level in (0.5, 0.99))
    assert wide.low is not None and narrow.low is not None
    assert wide.high is not None and narrow.high is not None
    assert wide.low < narrow.low < narrow.high < wide.high


def covered(result: Interval, truth: float) -> bool:
    assert result.low is not None and result.high is not None
    return result.low <= truth <= result.high


@pytest.mark.parametrize("noise", [0.0, 1.0, 20.0])
def test_coverage_of_the_mean_with_seeds(noise: float) -> None:
    # `noise` is the spread of the seeds within a prompt next to a spread of 1 between prompts.
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        prompts = 2 + generator.normal(size=(50, 1))
        values = prompts + noise * generator.normal(size=(50, 4))
        hits += covered(bootstrap_interval(values, resamples=400), 2.0)
    assert 0.90 <= hits / 300 <= 0.99


def test_coverage_of_a_ratio() -> None:
    generator = np.random.default_rng(8)
    hits = 0
    for _ in range(300):
        tokens = generator.integers(1, 60, size=60)
        # Long responses are easier: the mean of the ratios would miss the ratio of the sums.
        nats = tokens * (1 + 10 / tokens) * generator.uniform(0.5, 1.5, size=60)
        truth = 1 + 10 / 30  # E[tokens + 10] / E[tokens]
        hits += covered(bootstrap_interval(nats, weights=tokens, resamples=400), truth)
    assert 0.90 <= hits / 300 <= 0.99


def test_coverage_of_a_difference_and_the_gain_of_pairing() -> None:
    generator = np.random.default_rng(9)
    hits, a, b = 0, np.empty(0), np.empty(0)
    for _ in range(300):
        hard = 10 * generator.normal(size=(50, 1))
        a = hard + 1 + generator.normal(size=(50, 2))
        b = hard + generator.normal(size=(50, 3))
        hits += covered(paired_interval(a, b, resamples=400), 1.0)
    assert 0.90 <= hits / 300 <= 0.99
    paired, alone = paired_interval(a, b), bootstrap_interval(a)
    assert paired.low is not None and paired.high is not None
    assert alone.low is not None and alone.high is not None
    assert 5 * (paired.high - paired.low) < alone.high - alone.low


def test_paired_differences_by_hand() -> None:
    result = paired_interval([1.0, 12.0], [1.0, 2.0])  # differences 0 and 10
    assert result == Interval(5.0, 0.0, 10.0)
    swapped = paired_interval([1.0, 2.0], [1.0, 12.0])
    assert swapped == Interval(-5.0, -10.0, 0.0)
    # Ratios 12/4 and 6/3; each method has its own weights.
    ratio = paired_interval([9.0, 3.0], [2.0, 4.0], a_weights=[3, 1], b_weights=[1, 2])
    assert ratio == Interval(1.0, 1.0, 1.0)


def test_pairing_equals_the_interval_of_the_differences() -> None:
    generator = np.random.default_rng(10)
    a, b = generator.normal(size=30), generator.normal(size=30)
    paired, single = paired_interval(a, b, seed=3), bootstrap_interval(a - b, seed=3)
    assert dataclasses.astuple(paired) == pytest.approx(dataclasses.astuple(single))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InvalidValueError, match=r"at prompt 1, seed 0 \(1 in all\)"):
        bootstrap_interval([1.0, bad])
    with pytest.raises(InvalidValueError, match=r"weights of runs\[0\]: expected finite"):
        bootstrap_interval([1.0, 2.0], weights=[1.0, bad])
    with pytest.raises(InvalidValueError, match=r"baseline\[0\]: expected finite numbers"):
        paired_interval([1.0, 2.0], [bad, 1.0])


@pytest.mark.parametrize(
    ("values", "options", "text"),
    [
        ([], {}, r"found the shape \(0,\)"),
        (3.0, {}, r"found the shape \(\)"),
        ([[[1.0]]], {}, r"found the shape \(1, 1, 1\)"),
        ([1.0, 2.0], {"weights": [1.0]}, r"weights of runs\[0\]: expected the shape"),
        ([1.0, 2.0], {"weights": [1.0, -1.0]}, "smallest weight of -1"),
        ([1.0, 2.0], {"weights": [1.0, 0.0]}, "0 only where the value is 0"),
        ([0.0, 0.0], {"weights": [0.0, 0.0]}, "at least one above 0"),
        ([1.0, 2.0], {"level": 95}, "level: expected a number between 0 and 1, found 95"),
        ([1.0, 2.0], {"resamples": 0}, "resamples: expected at least 1, found 0"),
    ],
)
def test_wrong_arguments_are_refused(values: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidValueError, match=text):
        bootstrap_interval(values, **options)


def test_different_prompts_cannot_be_paired() -> None:
    with pytest.raises(InvalidValueError, match="found 1 seeds of 2 prompts and 1 seeds of 3"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0])
