"""Inspection against a row-by-row computation; verification against hand-made damage."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tdistill.core import kappa
from tdistill.errors import CacheError
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.inspection import inspect_cache, inspection_text
from teaching import IDENTITY, roll

GAMMA = 0.9
CAPPED = CaptureConfig(captured_top_p=0.9, max_set_size=12)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return roll(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return roll(tmp_path_factory.mktemp("capped"), capture=CAPPED)


def steps_of(cache: Cache) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Ids, probabilities and action of every step, read one row at a time."""
    steps = []
    for row in cache.rows():
        sets = cache.evidence([row]).sets
        for t, action in enumerate(row.response_ids):
            ids, log_probs = sets.row(t)
            steps.append((ids.numpy(), log_probs.double().exp().numpy(), action))
    return steps


def smallest_prefix(probabilities: np.ndarray, p: float) -> int:
    """Members of the smallest set of mass p, all of them where the set has less."""
    reached = np.flatnonzero(np.cumsum(probabilities) >= p)
    return int(reached[0]) + 1 if len(reached) else len(probabilities)


def bound_of_row(losses: list[float]) -> float:
    """(3.3) at every state: the discounted sum of the losses of the later ones, written out."""
    return sum(
        GAMMA ** (k - t) * losses[k] for t in range(len(losses)) for k in range(t + 1, len(losses))
    )


@pytest.mark.parametrize("name", ["cache", "capped"])
def test_counts_and_quantiles(name: str, request: pytest.FixtureRequest):
    cache: Cache = request.getfixturevalue(name)
    found, steps = inspect_cache(cache, discount=GAMMA), steps_of(cache)
    sizes = np.array([len(ids) for ids, _, _ in steps])
    mass = np.array([p.sum() for _, p, _ in steps])
    rows = cache.rows()
    files = sum(f.stat().st_size for f in cache.folder.glob("*.arrow"))
    assert found["rows"] == len(rows) == 15
    assert found["steps"] == len(steps) == sum(len(row.response_ids) for row in rows)
    assert found["members"] == sizes.sum()
    assert found["bytes"] == files
    assert found["bytes_per_step"] == pytest.approx(files / len(steps))
    assert found["bytes_per_member"] == pytest.approx(files / sizes.sum())
    assert found["set_size"] == pytest.approx(
        {
            "mean": sizes.mean(),
            "median": np.median(sizes),
            "q90": np.quantile(sizes, 0.9),
            "q99": np.quantile(sizes, 0.99),
            "max": sizes.max(),
        }
    )
    assert found["coverage"]["mean"] == pytest.approx(mass.mean(), abs=1e-6)
    assert found["coverage"]["q10"] == pytest.approx(np.quantile(mass, 0.1), abs=1e-6)
    assert found["coverage"]["min"] == pytest.approx(mass.min(), abs=1e-6)
    assert found["kappa_least_mass"] == pytest.approx(kappa(mass.min(), GAMMA), rel=1e-5)
    outside = [action not in ids for ids, _, action in steps]
    assert found["out_of_set_rate"] == pytest.approx(np.mean(outside))
    assert found["ended_rate"] == pytest.approx(np.mean([row.ended for row in rows]))


def test_the_histogram_counts_every_step_once(cache: Cache):
    found = inspect_cache(cache)["set_size_histogram"]
    edges, counts = found["edges"], found["counts"]
    assert edges[:5] == [1, 2, 3, 5, 9][: len(edges)]
    sizes = [len(ids) for ids, _, _ in steps_of(cache)]
    bins = [[s for s in sizes if low <= s < high] for low, high in pairwise(edges)]
    assert counts == [len(b) for b in bins]
    assert sum(counts) == len(sizes)


@pytest.mark.parametrize("name", ["cache", "capped"])
def test_bounds_are_those_of_the_cached_responses(name: str, request: pytest.FixtureRequest):
    cache: Cache = request.getfixturevalue(name)
    bounds = inspect_cache(cache, discount=GAMMA)["bounds"]
    assert [b["set_top_p"] for b in bounds] == [0.5, 0.6, 0.7, 0.8, 0.9]
    for bound in bounds:
        sizes, losses, total = [], [], 0.0
        for row in cache.rows():
            sets = cache.evidence([row]).sets
            own = []
            for t in range(len(row.response_ids)):
                probabilities = sets.row(t)[1].double().exp().numpy()
                kept = smallest_prefix(probabilities, bound["set_top_p"])
                sizes.append(kept)
                own.append(max(0.0, -math.log(probabilities[:kept].sum())))
            losses += own
            total += bound_of_row(own)
        assert bound["mean_size"] == pytest.approx(np.mean(sizes))
        assert bound["median_size"] == pytest.approx(np.median(sizes))
        assert bound["bound_as_cached"] == pytest.approx(total / len(sizes), rel=1e-4)
        # From the state behind a cut on: the mean loss until an end, seen once in so many steps.
        rows = cache.rows()
        ending = sum(row.ended for row in rows) / len(losses)
        behind = np.mean(losses) / (1 - GAMMA * (1 - ending))
        cut = [len(row.response_ids) for row in rows if not row.ended]
        assert cut
        added = sum(GAMMA**k * behind for length in cut for k in range(1, length + 1))
        assert bound["bound"] == pytest.approx((total + added) / len(sizes), rel=1e-4)
        stationary = GAMMA / (1 - GAMMA) * np.mean(losses)
        assert bound["bound_stationary"] == pytest.approx(stationary, rel=1e-4)
        assert bound["kappa"] == pytest.approx(kappa(bound["set_top_p"], GAMMA))
    losses_of_p = [b["bound"] for b in bounds]
    assert losses_of_p == sorted(losses_of_p, reverse=True)
    bytes_of_p = [b["bytes_per_step"] for b in bounds]
    assert bytes_of_p == sorted(bytes_of_p)
    assert bytes_of_p[-1] == pytest.approx(inspect_cache(cache)["bytes_per_step"], rel=0.02)


def test_how_often_the_cap_binds(cache: Cache, capped: Cache):
    assert inspect_cache(cache)["cap_binds"] == 0.0
    steps = steps_of(capped)
    binding = [len(ids) == 12 and p.sum() < 0.899 for ids, p, _ in steps]
    assert 0 < sum(binding) < len(steps)
    numbers = inspect_cache(capped)
    assert numbers["cap_binds"] == pytest.approx(np.mean(binding))
    assert "kappa at the least captured mass" in inspection_text(numbers)


def test_the_numbers_are_plain_json_and_text(cache: Cache):
    numbers = inspect_cache(cache)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    text = inspection_text(numbers)
    assert f"{numbers['rows']}, " in text
    assert text.count("p = ") == 1 + len(numbers["bounds"])
    assert "note" not in text


def test_an_empty_cache_is_refused(tmp_path: Path):
    with CacheWriter(tmp_path, IDENTITY):
        pass
    with pytest.raises(CacheError, match="found an empty one"):
        inspect_cache(Cache(tmp_path))
