"""What was measured of each training seed, as an estimate of the result."""

from __future__ import annotations

from collections.abc import Sequence

from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.matching import corrected_interval
from tdistill.report.result import Estimate


def estimate_of(
    ours: Sequence[Sample], theirs: Sequence[Sample] | None = None, *, comparisons: int = 1
) -> Estimate | None:
    """Mean and interval of a metric, or of a paired difference, with the mean of each seed.

    Args:
        ours: a sample for each training seed.
        theirs: the same seeds of another model, to subtract.
        comparisons: how many the interval is corrected for.

    Returns:
        None where nothing was measured.
    """
    if not ours:
        return None
    interval = corrected_interval(ours, theirs, comparisons=comparisons)
    means = [sample.mean for sample in ours]
    if theirs is not None:
        means = [a - b.mean for a, b in zip(means, theirs, strict=True)]
    return Estimate(interval.mean, interval.low, interval.high, means)
