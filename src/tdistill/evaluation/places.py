"""Sums by the place of a step in its response: the first, the second, 3 to 4, 5 to 8, and so on.

What a place has is a metric of its own, ``forward_kl@4`` for steps 3 to 4, so that it gets
intervals as all metrics do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdistill.evaluation.intervals import Sample

_MARK = "@"
Sums = NDArray[np.float64]


def place(step: int) -> int:
    """The place of a step, both from 0; place k > 0 ends with the 2^k-th step.

    Example:
        >>> [place(step) for step in range(9)]
        [0, 1, 2, 2, 3, 3, 3, 3, 4]
    """
    return step.bit_length()


def sums_by_place(values: NDArray[np.floating[Any]], lengths: Sequence[int]) -> Sums:
    """Sums over the steps of each place of each response.

    Args:
        values: of the steps of all responses, end to end [T].
        lengths: steps of each response.

    Returns:
        Sums [responses, places], as many places as the longest response has.

    Example:
        >>> sums_by_place(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), [4, 1]).tolist()
        [[1.0, 2.0, 7.0], [5.0, 0.0, 0.0]]
    """
    response = np.repeat(np.arange(len(lengths)), lengths)
    where = np.asarray([place(step) for length in lengths for step in range(length)])
    sums = np.zeros((len(lengths), place(max(lengths) - 1) + 1))
    np.add.at(sums, (response, where), values)
    return sums


def metrics_by_place(name: str, sums: Sums, steps: Sums) -> dict[str, Sample]:
    """A metric for each place that at least half of the prompts reach.

    Args:
        name: of the metric over all steps.
        sums: over the steps of each place [prompts, ..., places].
        steps: how many there are, of the same shape.
    """
    of_prompt = steps.reshape(len(steps), -1, steps.shape[-1]).sum(axis=1)
    reached = (of_prompt > 0).mean(axis=0) >= 0.5
    return {
        f"{name}{_MARK}{2**i}": Sample(sums[..., i], steps[..., i]) for i in np.flatnonzero(reached)
    }


def is_of_place(name: str) -> bool:
    """Whether a metric is that of one place."""
    return _MARK in name


def last_step(name: str, metric: str) -> int | None:
    """The last step of the place that a name means; None if it means another metric.

    Example:
        >>> last_step("forward_kl@4", "forward_kl"), last_step("leak@4", "forward_kl")
        (4, None)
    """
    found, mark, step = name.partition(_MARK)
    return int(step) if mark and found == metric else None
