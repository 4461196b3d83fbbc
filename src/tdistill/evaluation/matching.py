"""Two models at the same entropy, or the same diversity: what is left when sharpness is not.

A model that is sampled at several temperatures gives a curve: a quality against a variable, such as
the entropy of a token, that rises with the temperature. Between its temperatures the curve is read
by linear interpolation; beyond its ends nothing is known, and nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tdistill.evaluation.intervals import Interval, Sample, crossed_interval

_DRAWS_BEYOND = 10  # bootstrap draws beyond each bound, at least


@dataclass(frozen=True, eq=False)
class SweptQuality:
    """A quality of one model, of one training seed, at every temperature, the lowest first.

    Attributes:
        variable: what models are matched by, of all responses at each temperature together.
        quality: what was measured there; the same prompts and generation seeds everywhere.
    """

    variable: Sequence[float]
    quality: Sequence[Sample]

    def at(self, level: float) -> Sample | None:
        """The quality where the variable has a value; None beyond the ends of the curve.

        Every prompt is interpolated with the weights of the whole curve, each temperature's sums as
        shares of its total weight, so that the mean is the interpolated mean.
        """
        weights = interpolation_weights(self.variable, level)
        if weights is None:
            return None
        values = np.zeros(self.quality[0].values.shape)
        masses = np.zeros_like(values)
        for weight, sample in zip(weights, self.quality, strict=True):
            mass = np.ones_like(sample.values) if sample.weights is None else sample.weights
            values += weight * sample.values / mass.sum()
            masses += weight * mass / mass.sum()
        return Sample(values, masses)


def interpolation_weights(variable: Sequence[float], level: float) -> NDArray[np.float64] | None:
    """Weights of the temperatures, of sum 1, under which the variable has a value.

    Neighbours whose order is the wrong way round (noise, or a variable that stands still) are taken
    together as one point, their mean, until the variable rises from point to point.

    Args:
        variable: at each temperature, the lowest first.
        level: the value.

    Returns:
        None where the value is beyond the ends of the curve, or the curve is a single point.

    Example:
        >>> interpolation_weights([1.0, 2.0, 4.0], 2.5)
        array([0.  , 0.75, 0.25])
        >>> interpolation_weights([1.0, 3.0, 2.0, 4.0], 2.5)
        array([0. , 0.5, 0.5, 0. ])
        >>> interpolation_weights([1.0, 2.0, 4.0], 4.5) is None
        True
    """
    points = _rising(variable)
    places = [place for place, _ in points]
    if len(points) < 2 or not places[0] <= level <= places[-1]:
        return None
    right = max(1, int(np.searchsorted(places, level)))
    share = (level - places[right - 1]) / (places[right] - places[right - 1])
    weights = np.zeros(len(variable))
    for part, (_, members) in ((1 - share, points[right - 1]), (share, points[right])):
        weights[members] = part / len(members)
    return weights


def _rising(variable: Sequence[float]) -> list[tuple[float, list[int]]]:
    """Points with the temperatures in each (pool adjacent violators)."""
    points: list[tuple[float, list[int]]] = []
    for number, value in enumerate(variable):
        place, members = float(value), [number]
        while points and points[-1][0] >= place:
            members = points.pop()[1] + members
            place = float(np.mean([variable[i] for i in members]))
        points.append((place, members))
    return points


def matched_levels(curves: Sequence[Sequence[float]], count: int) -> list[float]:
    """Values of a variable at which curves are compared: the middles of equal parts.

    Args:
        curves: the variable along each curve; what all of them reach is divided.
        count: of the values.

    Returns:
        The values; an empty list where the curves have no range in common.

    Example:
        >>> matched_levels([[0.0, 4.0], [1.0, 5.0]], 3)
        [1.5, 2.5, 3.5]
    """
    ends = [_rising(curve) for curve in curves]
    low, high = max(e[0][0] for e in ends), min(e[-1][0] for e in ends)
    width = (high - low) / count
    return [low + (i + 0.5) * width for i in range(count)] if width > 0 else []


def matched_samples(curves: Sequence[SweptQuality], level: float) -> list[Sample] | None:
    """A model where the variable has a value, a sample a training seed; each has its own curve.

    Returns:
        None where a training seed does not reach the value.
    """
    samples = [curve.at(level) for curve in curves]
    known = [sample for sample in samples if sample is not None]
    return known if len(known) == len(samples) else None


def matched_difference(
    ours: Sequence[SweptQuality],
    theirs: Sequence[SweptQuality],
    level: float,
    *,
    comparisons: int = 1,
) -> Interval | None:
    """The quality of one model less that of another where both have the same entropy or diversity.

    The interval is over prompts and training seeds with the variable taken as known: noise in where
    a curve lies along its axis is not in it.

    Args:
        ours: the curve of each training seed.
        theirs: the same training seeds of the other model.
        level: of the variable.
        comparisons: see `corrected_interval`.

    Returns:
        None where one of the curves does not reach the level: nothing is claimed there.

    Example:
        >>> sharp, flat = ([Sample(np.array([q, q + 2])) for q in x] for x in ([1.0, 2], [0.0, 1]))
        >>> theirs = [SweptQuality([2.0, 4.0], flat)]
        >>> matched_difference([SweptQuality([1.0, 3.0], sharp)], theirs, 2.5).mean
        1.5
    """
    samples = matched_samples(ours, level), matched_samples(theirs, level)
    if samples[0] is None or samples[1] is None:
        return None
    return corrected_interval(samples[0], samples[1], comparisons=comparisons)


def corrected_interval(
    runs: Sequence[Sample], baseline: Sequence[Sample] | None = None, *, comparisons: int = 1
) -> Interval:
    """`crossed_interval` at 1 - 0.05 / m: all of m intervals hold at once with 95% (Bonferroni).

    Args:
        runs: the sample of each training seed.
        baseline: the same training seeds of another method, to subtract.
        comparisons: m; more of them need more bootstrap draws.
    """
    outside = 0.05 / comparisons
    resamples = max(2000, math.ceil(2 * _DRAWS_BEYOND / outside))
    return crossed_interval(runs, baseline, level=1 - outside, resamples=resamples)
