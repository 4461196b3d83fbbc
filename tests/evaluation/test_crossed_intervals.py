"""Intervals over prompts and training seeds."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from tdistill.errors import InvalidValueError
from tdistill.evaluation.intervals import Interval, Sample, crossed_interval


def simulated(
    generator: np.random.Generator, seeds: int, *, prompt: float, seed: float, noise: float
) -> list[Sample]:
    """60 prompts with effects of the given deviations; the true mean is 2."""
    prompts = prompt * generator.normal(size=60)
    return [
        Sample(2 + prompts + seed * generator.normal() + noise * generator.normal(size=60))
        for _ in range(seeds)
    ]


def coverage(seeds: int, repeats: int = 300, **deviations: float) -> float:
    generator = np.random.default_rng(11)
    hits = 0
    for _ in range(repeats):
        found = crossed_interval(simulated(generator, seeds, **deviations), resamples=400)
        assert found.low is not None and found.high is not None
        hits += found.low <= 2.0 <= found.high
    return hits / repeats


@pytest.mark.parametrize(
    ("seeds", "deviations", "least", "most"),
    [
        (3, {"prompt": 1.0, "seed": 0.05, "noise": 0.2}, 0.90, 0.97),
        (3, {"prompt": 0.0, "seed": 0.0, "noise": 1.0}, 0.97, 1.0),
        (10, {"prompt": 1.0, "seed": 0.3, "noise": 1.0}, 0.91, 0.99),
        # The seeds alone: what the docstring warns of.
        (3, {"prompt": 0.0, "seed": 1.0, "noise": 0.01}, 0.70, 0.82),
        (10, {"prompt": 0.0, "seed": 1.0, "noise": 0.01}, 0.85, 0.93),
    ],
)
def test_coverage_with_effects_of_prompts_seeds_and_noise(
    seeds: int, deviations: dict[str, float], least: float, most: float
) -> None:
    assert least <= coverage(seeds, **deviations) <= most


def test_an_interval_over_prompts_alone_misses_the_seeds() -> None:
    """The same data as above, each seed taken for a generation seed: far too narrow."""
    generator, hits = np.random.default_rng(11), 0
    for _ in range(200):
        runs = simulated(generator, 10, prompt=0.1, seed=0.3, noise=0.1)
        flat = crossed_interval([Sample(np.stack([run.values for run in runs], 1))], resamples=400)
        assert flat.low is not None and flat.high is not None
        hits += flat.low <= 2.0 <= flat.high
    assert hits / 200 < 0.5
    assert coverage(10, 200, prompt=0.1, seed=0.3, noise=0.1) > 0.85


def test_coverage_of_a_difference_whose_seeds_are_shared() -> None:
    """An effect that a seed has on both methods cancels, as that of a prompt does."""
    generator, hits, widths = np.random.default_rng(12), 0, []
    for _ in range(200):
        base = simulated(generator, 3, prompt=3.0, seed=5.0, noise=0.1)
        better = [Sample(b.values + 1 + 0.5 * generator.normal(size=60)) for b in base]
        found = crossed_interval(better, base, resamples=400)
        assert found.low is not None and found.high is not None
        hits += found.low <= 1.0 <= found.high
        widths.append(found.high - found.low)
    assert hits / 200 >= 0.93
    assert np.mean(widths) < 0.5


def over_prompts_alone(*methods: Sample, seed: int = 0) -> tuple[float, float, float]:
    """Mean, low and high of the plain bootstrap over prompts, written out; less the second's."""
    prompts, draws = len(methods[0].values), 2000
    rows = np.random.default_rng(seed).integers(prompts, size=(draws, prompts))

    def ratio(method: Sample, drawn: np.ndarray) -> float:
        weights = np.ones_like(method.values) if method.weights is None else method.weights
        return float(method.values[drawn].sum() / weights[drawn].sum())

    def statistic(drawn: np.ndarray) -> float:
        first, *second = (ratio(method, drawn) for method in methods)
        return first - sum(second)

    low, high = np.quantile([statistic(drawn) for drawn in rows], [0.025, 0.975])
    return statistic(np.arange(prompts)), low, high


def test_one_training_seed_is_the_bootstrap_over_prompts() -> None:
    generator = np.random.default_rng(13)
    weights = generator.integers(1, 9, size=(20, 3)).astype(float)
    ours = Sample(generator.normal(size=(20, 3)), weights)
    base = Sample(generator.normal(size=(20, 2)))
    exactly = {"rel": 1e-13, "abs": 1e-15}
    alone = dataclasses.astuple(crossed_interval([ours]))
    assert alone == pytest.approx(over_prompts_alone(ours), **exactly)
    assert ours.interval() == crossed_interval([ours])
    paired = dataclasses.astuple(crossed_interval([ours], [base], seed=4))
    assert paired == pytest.approx(over_prompts_alone(ours, base, seed=4), **exactly)


def test_a_method_does_not_differ_from_itself() -> None:
    runs = simulated(np.random.default_rng(14), 3, prompt=1.0, seed=1.0, noise=1.0)
    assert crossed_interval(runs, runs) == Interval(0.0, 0.0, 0.0)


def test_two_seeds_and_two_prompts_against_all_draws() -> None:
    table = np.array([[1.0, 4.0], [30.0, 9.0]])  # [seed, prompt]
    weights = np.array([[1.0, 2.0], [5.0, 3.0]])
    draws = []
    for prompts, seeds in itertools.product(itertools.product(range(2), repeat=2), repeat=2):
        cells = [(s, p) for s in seeds for p in prompts]
        draws.append(sum(table[c] for c in cells) / sum(weights[c] for c in cells))
    runs = [Sample(v, w) for v, w in zip(table, weights, strict=True)]
    found = crossed_interval(runs, level=0.8, resamples=20_000)
    assert found.mean == pytest.approx(table.sum() / weights.sum())
    # 16 equally likely draws: the quantiles at 0.1 and 0.9 are the 2nd and the 15th smallest.
    assert [found.low, found.high] == pytest.approx([sorted(draws)[1], sorted(draws)[14]])


def test_seeds_that_agree_add_nothing() -> None:
    one = simulated(np.random.default_rng(15), 1, prompt=1.0, seed=0.0, noise=0.0)
    single, repeated = crossed_interval(one), crossed_interval(one * 4)
    assert dataclasses.astuple(repeated) == pytest.approx(dataclasses.astuple(single))


def test_one_prompt_has_no_bounds() -> None:
    runs = [Sample(np.array([1.0])), Sample(np.array([3.0]))]
    assert crossed_interval(runs) == Interval(2.0, None, None)


def test_a_sample_survives_json() -> None:
    for weights in (None, np.array([[1.0, 2.0]])):
        sample = Sample(np.array([[0.5, 3.0]]), weights)
        again = Sample.from_dict(sample.to_dict())
        assert again.to_dict() == sample.to_dict()
        assert again.mean == sample.mean == (3.5 / 2 if weights is None else 3.5 / 3)


def test_what_cannot_be_compared_is_refused() -> None:
    two, three = Sample(np.zeros(2)), Sample(np.zeros(3))
    with pytest.raises(
        InvalidValueError, match=r"same prompts for every training seed, found 2, 3"
    ):
        crossed_interval([two, three])
    with pytest.raises(InvalidValueError, match="found no training seed"):
        crossed_interval([])
    with pytest.raises(InvalidValueError, match="found 2 seeds of 2 prompts and 1 seeds of 2"):
        crossed_interval([two, two], [two])
    with pytest.raises(InvalidValueError, match=r"runs\[1\]: expected finite numbers"):
        crossed_interval([two, Sample(np.array([1.0, np.nan]))])
