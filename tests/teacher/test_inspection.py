"""Inspection against a row-by-row computation; verification against hand-made damage."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from older import make_older, read_batch, write_batch

from tdistill.core import kappa
from tdistill.errors import CacheError
from tdistill.teacher.cache import Cache, CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.inspection import inspect_cache, inspection_text, verify_cache
from tdistill.teacher.manifest import file_sha256
from teaching import IDENTITY, roll, teacher

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
        assert bound["bound"] == pytest.approx(total / len(sizes), rel=1e-4)
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
    assert verify_cache(Cache(tmp_path)) == []


@pytest.mark.parametrize("name", ["cache", "capped"])
def test_a_sound_cache_has_no_problems(name: str, request: pytest.FixtureRequest):
    assert verify_cache(request.getfixturevalue(name)) == []


def rewrite(
    folder: Path,
    column: str,
    change: Callable[[list[Any]], Any],
    capture: CaptureConfig = CaptureConfig(0.9, None),  # noqa: B008
) -> None:
    """Change a column of the first shard and give the shard the checksum of its new content."""
    with CacheWriter(folder, identity_of(teacher(), capture)) as writer:
        shard = writer.manifest.shards[0]
        path = folder / shard.name
        batch = read_batch(path)
        values = batch.column(column).to_pylist()
        values = change(values) or values
        place = batch.schema.get_field_index(column)
        columns = {
            name: pa.array(values, type=batch.column(i).type) if i == place else batch.column(i)
            for i, name in enumerate(batch.schema.names)
        }
        write_batch(path, pa.record_batch(columns))
        listed = dataclasses.replace(shard, bytes=path.stat().st_size, sha256=file_sha256(path))
        writer.manifest.with_shard(listed).write(folder)


def reverse_sets(values: list[Any]) -> None:
    values[0].reverse()


def set_first(value: Any) -> Callable[[list[Any]], None]:
    def change(values: list[Any]) -> None:
        values[0][0] = value

    return change


def double_a_member(values: list[Any]) -> None:
    values[0][1] = values[0][0]


def swap_rows(values: list[Any]) -> None:
    values[0], values[1] = values[1], values[0]


def drop_last(values: list[Any]) -> None:
    values[0].pop()


def empty_first(values: list[Any]) -> None:
    values[0][1] += values[0][0]
    values[0][0] = 0


def other_token(values: list[Any]) -> None:
    values[0][0] = values[0][0] + 1 if values[0][0] < 60 else 2


def above_zero(values: list[Any]) -> None:
    values[0][0] = np.float16(0.5)


DAMAGE: list[tuple[str, Callable[[list[Any]], Any], str]] = [
    ("set_log_probs", reverse_sets, "not in descending order"),
    ("set_log_probs", above_zero, "a log-probability above 0"),
    ("set_log_probs", set_first(np.float16("nan")), "a log-probability above 0 or not a number"),
    ("set_ids", set_first(64), "a token id outside the vocabulary"),
    ("set_ids", double_a_member, "a token twice in one set"),
    ("set_ids", drop_last, "member count differs from the manifest"),
    ("set_sizes", empty_first, "an empty set"),
    ("set_sizes", drop_last, "step count differs from the manifest"),
    ("set_sizes", set_first(5000), "columns of different lengths"),
    ("log_normaliser", drop_last, "columns of different lengths"),
    ("action_log_prob", set_first(np.float16(-9.0)), "a response token with two log-prob"),
    ("response_ids", other_token, "a row whose key is not that of its tokens"),
    ("prompt_ids", other_token, "a row whose key is not that of its tokens"),
    ("key", swap_rows, "a row whose key is not that of its tokens"),
]


@pytest.mark.parametrize(("column", "change", "problem"), DAMAGE)
def test_damage_to_columns_of_an_older_format_is_found(
    tmp_path: Path, column: str, change: Callable[[list[Any]], Any], problem: str
):
    first = roll(tmp_path).manifest.shards[0].name
    assert verify_cache(make_older(tmp_path)) == []
    rewrite(tmp_path, column, change)
    found = verify_cache(Cache(tmp_path))
    assert any(problem in text for text in found), found
    assert all(text.startswith(first) for text in found)


def test_damage_to_the_file_is_found_on_opening(tmp_path: Path):
    shard = tmp_path / roll(tmp_path).manifest.shards[0].name
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheError, match="differs from its checksum"):
        Cache(tmp_path)
