"""Means with bootstrap intervals over prompts, for one method or for the difference of two."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tdistill.errors import InvalidValueError

Totals = NDArray[np.float64]
"""[2, prompts]: the sum and the weight of every prompt, all its seeds together."""


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its interval; the bounds are None where the data cannot give any."""

    mean: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return ``{"mean": ..., "low": ..., "high": ...}`` for JSON."""
        return asdict(self)


def bootstrap_interval(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean over prompts and seeds, with a percentile bootstrap interval over prompts.

    The mean is ``sum(values) / sum(weights)``, with weights of 1 unless given: for a rate such as
    nats per token, ``values`` holds the nats of each response and ``weights`` its tokens.

    Prompts are drawn with replacement, each with all its seeds. Seeds are not drawn a second time
    within a prompt: the spread of the prompts' means already contains their noise, and adding it
    twice makes the interval up to 1.4 times too wide (Davison and Hinkley 1997, section 3.8).
    Columns must be independent given the prompt, as generation seeds are; an effect shared by a
    whole column, such as a training seed, is not in the interval.

    With one prompt (or one prompt of positive weight) nothing is known about other prompts, and
    the bounds are None rather than equal to the mean. With few prompts the interval is too
    narrow: of normal values, a 95% interval covers 93% with 20 prompts, 91% with 10, 84% with 5.

    Args:
        values: ``[prompts]`` or ``[prompts, seeds]``, finite.
        weights: of the same shape, finite, not negative; 0 only where the value is 0.
        level: the coverage aimed at, between 0 and 1.
        resamples: number of bootstrap draws.
        seed: seed of the draws; the same arguments give the same interval.

    Returns:
        The mean and its bounds, in the unit of ``values`` (over that of ``weights``).

    Raises:
        InvalidValueError: a value is not finite, or a shape or an option cannot be used.

    Reference:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    >>> bootstrap_interval([4.0, 4.0, 4.0])
    Interval(mean=4.0, low=4.0, high=4.0)
    >>> bootstrap_interval([[6.0], [2.0]], weights=[[3], [1]]).mean
    2.0
    """
    _check_options(level, resamples)
    return _interval([_totals(values, weights, "values")], level, resamples, seed)


def paired_interval(
    a: ArrayLike,
    b: ArrayLike,
    *,
    a_weights: ArrayLike | None = None,
    b_weights: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean of ``a`` minus that of ``b`` on the same prompts, with its interval.

    Every draw takes the same prompts for both, so what makes a prompt hard for both cancels. An
    interval without 0 is a difference at this level.

    Args:
        a: ``[prompts]`` or ``[prompts, seeds]``, as in `bootstrap_interval`.
        b: the same prompts in the same order; its number of seeds may differ.
        a_weights: weights of ``a``, as in `bootstrap_interval`.
        b_weights: weights of ``b``.
        level: the coverage aimed at, between 0 and 1.
        resamples: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        The difference and its bounds; the bounds are None with fewer than two usable prompts.

    Raises:
        InvalidValueError: as in `bootstrap_interval`, or the numbers of prompts differ.

    Reference:
        Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation".

    >>> paired_interval([2.0, 12.0, 42.0, 102.0], [1.0, 11.0, 41.0, 101.0])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    _check_options(level, resamples)
    first, second = _totals(a, a_weights, "a"), _totals(b, b_weights, "b")
    if first.shape != second.shape:
        raise InvalidValueError(
            f"a and b: expected the same prompts in the same order, found {first.shape[1]} and "
            f"{second.shape[1]} prompts; keep only those that both methods answered"
        )
    return _interval([first, second], level, resamples, seed)


def _interval(samples: list[Totals], level: float, resamples: int, seed: int) -> Interval:
    """Bootstrap the ratio of ``samples[0]``, less that of ``samples[1]`` where there is one."""
    mean = float(_statistic(samples, slice(None)))
    if min(np.count_nonzero(totals[1]) for totals in samples) < 2:
        return Interval(mean, None, None)
    generator = np.random.default_rng(seed)
    prompts = samples[0].shape[1]
    draws = np.array(
        [_statistic(samples, generator.integers(prompts, size=prompts)) for _ in range(resamples)]
    )
    # A draw of nothing but weightless prompts has no ratio; it is left out.
    draws = draws[~np.isnan(draws)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _statistic(samples: list[Totals], rows: slice | NDArray[np.int64]) -> float:
    ratios = []
    for totals in samples:
        total, weight = totals[:, rows].sum(axis=1)
        ratios.append(total / weight if weight > 0 else np.nan)
    return ratios[0] if len(ratios) == 1 else ratios[0] - ratios[1]


def _totals(values: ArrayLike, weights: ArrayLike | None, name: str) -> Totals:
    value = _finite(values, name)
    weight = np.ones_like(value) if weights is None else _finite(weights, f"weights of {name}")
    if value.shape != weight.shape:
        raise InvalidValueError(
            f"weights of {name}: expected the shape {value.shape} of {name}, found {weight.shape}"
        )
    if (weight < 0).any() or ((weight == 0) & (value != 0)).any() or weight.sum() == 0:
        raise InvalidValueError(
            f"weights of {name}: expected at least one above 0, none below 0, and 0 only where the "
            f"value is 0; found a smallest weight of {weight.min()}; give each response its tokens"
        )
    return np.stack([value.sum(axis=1), weight.sum(axis=1)])


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.size == 0:
        raise InvalidValueError(
            f"{name}: expected [prompts] or [prompts, seeds] with at least one of each, found the "
            f"shape {np.shape(values)}"
        )
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, column = bad[0]
        raise InvalidValueError(
            f"{name}: expected finite numbers, found {array[row, column]} at prompt {row}, seed "
            f"{column} ({len(bad)} in all); leave such prompts out for every method alike"
        )
    return array


def _check_options(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise InvalidValueError(f"level: expected a number between 0 and 1, found {level}")
    if resamples < 1:
        raise InvalidValueError(f"resamples: expected at least 1, found {resamples}")
