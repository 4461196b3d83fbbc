"""Matched comparisons on made-up curves whose difference is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tdistill.evaluation.intervals import Sample, crossed_interval
from tdistill.evaluation.matching import (
    SweptQuality,
    corrected_interval,
    interpolation_weights,
    matched_difference,
    matched_levels,
    matched_samples,
)

PROMPTS = 30
TEMPERATURES = np.linspace(0.2, 1.0, 5)
Law = Callable[[float], float]


def entropy(temperature: float) -> float:
    return 2.0 * temperature**1.5


def falling(entropy: float) -> float:
    """A quality that sharpness alone decides."""
    return 40.0 - 6.0 * entropy


def made_up_curve(
    law: Law = falling, *, scale: float = 1.0, seed: int = 0, weighted: bool = False, noise=0.0
) -> SweptQuality:
    """A model whose quality is a law of its entropy, with effects of prompts that are its own.

    Args:
        law: the quality of an entropy.
        scale: the model's temperature for each of ours: the same policies, otherwise named.
        seed: of the noise of prompts.
        weighted: a rate, with tokens that differ by prompt and temperature.
        noise: of the entropy at each temperature.
    """
    chance = np.random.default_rng(seed)
    effect = np.random.default_rng(99).normal(size=PROMPTS)  # of the prompts, on every model
    along, samples = [], []
    for temperature in TEMPERATURES:
        along.append(entropy(temperature * scale) + noise * chance.normal())
        own = law(along[-1]) + effect - effect.mean()
        if not weighted:
            samples.append(Sample(np.stack([own - 1, own + 1], axis=1)))
            continue
        tokens = chance.integers(5, 50, size=(PROMPTS, 2)).astype(float)
        rates = np.stack([own, own], axis=1)
        rates += law(along[-1]) - (rates * tokens).sum() / tokens.sum()
        samples.append(Sample(rates * tokens, tokens))
    return SweptQuality(along, samples)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.3])
def test_another_scale_of_the_temperature_is_no_difference(scale: float, weighted: bool):
    ours, base = made_up_curve(scale=scale, weighted=weighted), made_up_curve(seed=1)
    levels = matched_levels([ours.variable, base.variable], 4)
    assert len(levels) == 4
    for level in levels:
        found = matched_difference([ours], [base], level)
        assert found is not None
        assert found.mean == pytest.approx(0.0, abs=1e-9)
        if not weighted:
            assert (found.low, found.high) == pytest.approx((0.0, 0.0), abs=1e-9)
    # At equal temperatures the sharper one looks better.
    naive = ours.quality[2].mean - base.quality[2].mean
    assert abs(naive) == pytest.approx(6 * abs(entropy(0.6 * scale) - entropy(0.6)), abs=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_shift_is_the_difference(weighted: bool):
    ours = [
        made_up_curve(lambda h: falling(h) + 3, scale=0.8 + 0.1 * s, seed=s, weighted=weighted)
        for s in range(3)
    ]
    base = [made_up_curve(seed=s) for s in range(3)]
    for level in (0.3, 0.8, 1.2):
        found = matched_difference(ours, base, level)
        assert found is not None and found.low is not None and found.high is not None
        assert found.mean == pytest.approx(3.0, abs=1e-9)
        assert found.low <= found.mean <= found.high
        assert found.low > 2.0


def test_a_difference_of_slope_is_read_at_the_level():
    ours, base = made_up_curve(lambda h: 35 - 2 * h), made_up_curve()
    for level in (0.5, 1.25, 1.8):
        found = matched_difference([ours], [base], level)
        assert found is not None
        assert found.mean == pytest.approx(4 * level - 5)


def test_every_training_seed_has_its_own_curve():
    """Seeds with other entropies at the same temperatures, all of one law."""
    ours = [made_up_curve(scale=scale) for scale in (0.7, 1.0, 1.2)]
    base = [made_up_curve(scale=scale) for scale in (1.1, 0.9, 1.0)]
    found = matched_difference(ours, base, 1.0)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.mark.parametrize("level", [0.05, 1.3, 5.0])
def test_nothing_is_claimed_beyond_a_curve(level: float):
    """The second seed of ours ends at 2 x 0.7^1.5 = 1.17."""
    ours, base = [made_up_curve(), made_up_curve(scale=0.7)], [made_up_curve()] * 2
    assert matched_difference(ours, base, level) is None
    assert matched_difference(base, ours, level) is None
    assert matched_samples(ours, level) is None
    assert matched_difference(ours, base, 1.1) is not None


def test_the_ends_of_a_curve_belong_to_it():
    curve = made_up_curve()
    for place, sample in ((0, curve.quality[0]), (-1, curve.quality[-1])):
        found = curve.at(curve.variable[place])
        assert found is not None
        assert found.mean == pytest.approx(sample.mean)


def test_levels_of_curves_without_a_common_range():
    assert matched_levels([[0.0, 1.0], [2.0, 3.0]], 3) == []
    assert matched_levels([[0.0, 1.0], [1.0, 3.0]], 3) == []
    assert matched_levels([[0.0, 2.0], [1.0, 3.0]], 2) == [1.25, 1.75]


def test_weights_give_the_level_and_sum_to_one():
    along = [0.1, 0.5, 0.4, 0.45, 0.9, 0.9, 2.0]
    for level in np.linspace(0.1, 2.0, 23):
        weights = interpolation_weights(along, float(level))
        assert weights is not None
        assert weights.sum() == pytest.approx(1.0)
        assert weights.min() >= 0
        assert weights @ along == pytest.approx(level)
    middle = interpolation_weights(along, 0.45)
    assert middle is not None
    assert middle == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0])


@pytest.mark.parametrize("along", [[3.0, 2.0, 1.0], [1.0, 1.0], [2.0]], ids=str)
def test_a_curve_that_does_not_rise_is_a_point(along: list[float]):
    assert interpolation_weights(along, 2.0) is None
    assert interpolation_weights(along, 1.0) is None


def test_a_correction_widens_the_interval_and_one_comparison_is_none():
    chance = np.random.default_rng(3)
    runs = [Sample(chance.normal(size=40)) for _ in range(3)]
    assert corrected_interval(runs) == crossed_interval(runs)
    plain, corrected = corrected_interval(runs), corrected_interval(runs, comparisons=20)
    assert corrected == crossed_interval(runs, level=0.9975, resamples=8000)
    assert plain.low is not None and plain.high is not None
    assert corrected.low is not None and corrected.high is not None
    assert corrected.mean == plain.mean
    ratio = (corrected.high - corrected.low) / (plain.high - plain.low)
    assert ratio == pytest.approx(3.02 / 1.96, rel=0.15)  # of a normal law


def test_all_intervals_hold_at_once():
    """Ten comparisons without any difference: corrected, an error among them is rare."""
    chance, errors = np.random.default_rng(5), {1: 0, 10: 0}
    for _ in range(60):
        runs = [(Sample(chance.normal(size=50)), Sample(chance.normal(size=50))) for _ in range(10)]
        for m in errors:
            found = [corrected_interval([a], [b], comparisons=m) for a, b in runs]
            excluded = [i for i in found if (i.low or 0.0) > 0 or (i.high or 0.0) < 0]
            errors[m] += bool(excluded)
    assert errors[1] > 15
    assert errors[10] <= 8


def test_noise_along_the_axis_moves_quality_with_it():
    """Both are read on their own curve, so of one law there is still no difference."""
    ours = [made_up_curve(seed=s, noise=0.03) for s in range(4)]
    base = [made_up_curve(seed=s + 10, noise=0.03) for s in range(4)]
    found = matched_difference(ours, base, 1.0)
    assert found is not None
    assert found.mean == pytest.approx(0.0, abs=1e-9)
