"""Temperature sweeps of a run that is done: curves, and differences at matched entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.matching import SweptQuality, matched_levels, matched_samples
from tdistill.report.result import Estimate, Matched, SweepPoint
from tdistill.report.sweeps import QUALITIES, VARIABLES
from tdistill.run.estimates import estimate_of

Records = Sequence[Mapping[str, Any]]
"""What judging one model left, of each training seed."""


def sweep_points(records: Records) -> list[SweepPoint]:
    """A model at every temperature."""
    points = []
    for seeds in zip(*(record["sweep"] for record in records), strict=True):
        together = {
            name: _mean([seed["together"][name] for seed in seeds]) for name in seeds[0]["together"]
        }
        metrics = {
            name: estimate_of([Sample.from_dict(seed["per_prompt"][name]) for seed in seeds])
            for name in seeds[0]["per_prompt"]
        }
        points.append(SweepPoint(seeds[0]["temperature"], metrics | together))
    return points


def matched_to(baseline: str, judged: Mapping[str, Records], *, levels: int) -> list[Matched]:
    """Every objective less the baseline, at values that the baseline reaches in every seed.

    An objective that does not reach a value has no difference there. All values of all objectives
    count as comparisons of a quality by a variable, whether they were reached or not.
    """
    others = [label for label in judged if label != baseline]
    comparisons = len(others) * levels
    first = judged[baseline][0]["sweep"][0]["per_prompt"]
    qualities = [name for name in QUALITIES if name in first]
    matched = []
    for variable in VARIABLES:
        chosen = matched_levels([_along(record, variable) for record in judged[baseline]], levels)
        for label in others:
            for level in chosen:
                metrics = {}
                for quality in qualities:
                    ours, theirs = (
                        matched_samples([_curve(r, variable, quality) for r in judged[x]], level)
                        for x in (label, baseline)
                    )
                    metrics[quality] = _difference(ours, theirs, comparisons)
                matched.append(Matched(label, variable, level, comparisons, metrics))
    return matched


def _difference(
    ours: list[Sample] | None, theirs: list[Sample] | None, comparisons: int
) -> Estimate | None:
    """None where a curve does not reach the level."""
    if ours is None or theirs is None:
        return None
    return estimate_of(ours, theirs, comparisons=comparisons)


def _curve(record: Mapping[str, Any], variable: str, quality: str) -> SweptQuality:
    samples = [Sample.from_dict(point["per_prompt"][quality]) for point in record["sweep"]]
    return SweptQuality(_along(record, variable), samples)


def _along(record: Mapping[str, Any], variable: str) -> list[float]:
    """The variable at each temperature."""
    return [_value(point, variable) for point in record["sweep"]]


def _value(point: Mapping[str, Any], variable: str) -> float:
    """A variable of all responses together."""
    if variable in point["together"]:
        return point["together"][variable]
    return Sample.from_dict(point["per_prompt"][variable]).mean


def _mean(seeds: Sequence[float]) -> Estimate:
    return Estimate(fmean(seeds), seeds=list(seeds))
