"""Rows of a cache as a sequence: the same rows, however they are asked for, and none is kept."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import cache_scale

from tdistill.errors import CacheError
from tdistill.evidence.rows import Row, row_key
from tdistill.teacher import step_counts
from tdistill.teacher.adaptive import choose_top_p
from tdistill.teacher.cache import open_shards
from tdistill.teacher.cache.cached_rows import (
    CachedRows,
    JoinedRows,
    compact,
    count_steps,
    prompts_of,
    select_rows,
    take_rows,
)
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.row_index import RowIndex
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.inspection import inspect_cache
from teaching import IDENTITY, assert_equal, record

RECORDS = [record((i // 3, 7), tuple(range(2, 3 + i % 4)), seed=i) for i in range(14)]
ROWS = [made.row for made in RECORDS]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Shards of 5 rows; a prompt has 3 rows, which may be in two shards."""
    folder = tmp_path_factory.mktemp("cache")
    with CacheWriter(folder, IDENTITY) as writer:
        for number in range(3):
            writer.write(f"a-{number}", RECORDS[5 * number :][:5])
    return Cache(folder)


def test_rows_are_those_written_however_they_are_asked_for(cache: Cache):
    rows = cache.rows()
    assert len(rows) == 14
    assert list(rows) == ROWS == rows
    assert [rows[i] for i in range(-14, 14)] == ROWS + ROWS
    assert list(rows[3:12:4]) == ROWS[3:12:4]
    assert rows[::-1] == ROWS[::-1]
    assert rows.take([13, 1, 2, 1, 0, 7]) == [ROWS[i] for i in (13, 1, 2, 1, 0, 7)]
    assert rows[::-1].take([0, 12]) == [ROWS[13], ROWS[1]]
    assert rows != ROWS[:-1]
    assert rows != [*ROWS[:-1], ROWS[0]]
    with pytest.raises(IndexError):
        rows[14]


def test_prompts_and_lengths_are_read_without_responses(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any) -> Any:
        raise AssertionError("a row was decoded")

    monkeypatch.setattr(open_shards.ShardReader, "rows", refuse)
    rows = cache.rows()
    assert list(prompts_of(rows)) == [row.prompt_ids for row in ROWS]
    assert list(prompts_of(rows[::-1])) == [row.prompt_ids for row in ROWS[::-1]]
    assert count_steps(rows[2:9]) == sum(len(row.response_ids) for row in ROWS[2:9])
    assert rows.where(lambda prompt: True) is rows
    some = rows.where(lambda prompt: prompt[0] in (1, 3))
    monkeypatch.undo()
    assert some == [row for row in ROWS if row.prompt_ids[0] in (1, 3)]
    assert some.where(lambda prompt: prompt[0] == 3) == ROWS[9:12]


def test_helpers_take_lists_as_well(cache: Cache):
    for rows in (ROWS, cache.rows(), JoinedRows([ROWS[:6], cache.rows()[6:]])):
        assert take_rows(rows, [4, 13, 5]) == [ROWS[i] for i in (4, 13, 5)]
        assert list(select_rows(rows, [4, 13, 5])) == [ROWS[i] for i in (4, 13, 5)]
        assert list(prompts_of(rows)) == [row.prompt_ids for row in ROWS]
        assert count_steps(rows) == sum(len(row.response_ids) for row in ROWS)
        assert rows[-1] == ROWS[-1]
        assert list(rows[4:8]) == ROWS[4:8]


def test_rows_that_follow_each_other_take_nothing_and_others_4_bytes(cache: Cache):
    assert cache.rows().numbers == range(14)
    assert cache.rows(names={"a-1.arrow", "a-2.arrow"}).numbers == range(5, 14)
    some = cache.rows().select([3, 1, 2])
    assert isinstance(some.numbers, np.ndarray)
    assert some.numbers.nbytes == 12
    assert compact(np.array([1 << 33, 0])).dtype == np.uint64
    assert cache.index_bytes == 12 * 14


def test_another_process_opens_the_files_itself(cache: Cache):
    sent = pickle.dumps(cache.rows()[2:9])
    assert len(sent) < 2000
    found: CachedRows = pickle.loads(sent)
    assert found == ROWS[2:9]
    assert_equal(pickle.loads(pickle.dumps(cache)).evidence(ROWS[:2]), cache.evidence(ROWS[:2]))


def test_pages_are_let_go_and_mapped_again(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    expected, gone = cache.evidence(ROWS[::-1]), []
    original = open_shards.let_go

    def counted(pages: Any) -> None:
        gone.append(pages.size)
        original(pages)

    monkeypatch.setattr(open_shards, "let_go", counted)
    again = Cache(cache.folder)
    for _ in range(3):
        again.evidence(ROWS)
    assert gone == []
    monkeypatch.setattr(open_shards, "_MOST_MAPPED", 0)
    for _ in range(2):
        assert_equal(again.evidence(ROWS[::-1]), expected)
        assert again.rows() == ROWS
    assert sorted(gone) == sorted(2 * [shard.bytes for shard in cache.manifest.shards])


def test_addresses_that_begin_alike_are_told_apart(cache: Cache):
    key = row_key(ROWS[3])
    other = key[:8] + bytes(8)
    index = RowIndex(np.frombuffer(other + key + other, dtype="<u8")[::2])
    assert index.find([key])[0].tolist() == [0, 1, 2]
    assert index.find([]) == []
    stranger = Row((1,), (2,), ended=True)
    with pytest.raises(CacheError, match="no evidence for a response of 1 tokens"):
        cache.evidence([ROWS[0], stranger])


def peak(work: Callable[[], Any]) -> int:
    """Most bytes that Python and numpy held at a time."""
    tracemalloc.start()
    work()
    _, found = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found


@pytest.mark.slow
def test_memory_does_not_grow_with_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The benchmark's cache in small: four times the rows, and the memory is that of one shard."""
    for name, value in {"RESPONSES": 16, "SHORTEST": 16, "LONGEST": 48}.items():
        monkeypatch.setattr(cache_scale, name, value)
    monkeypatch.setattr(step_counts, "_MASS_UNITS", 1 << 10)  # whose counts would hide the rest
    sizes = {"small": 1_000, "large": 4_000}
    for name, steps in sizes.items():
        cache_scale.make(tmp_path / name, steps, rows_of_a_shard=8)
    small, large = (Cache(tmp_path / name) for name in sizes)
    assert small.manifest.steps >= 1_000
    assert large.manifest.rows > 3 * small.manifest.rows
    assert large.index_bytes == 12 * len(large)
    works: list[Callable[[Cache], Any]] = [
        lambda cache: sum(len(row.response_ids) for row in cache.rows()),
        lambda cache: cache.rows().where(lambda prompt: prompt[0] > 1),
        inspect_cache,
        lambda cache: choose_top_p(cache, 1e3, discount=0.99),
    ]
    for work in works:
        work(small)  # what is made once
        least = peak(lambda work=work: work(small))
        assert peak(lambda work=work: work(large)) < 1.3 * least + 16_384
    found = inspect_cache(large)
    assert found["rows"] == large.manifest.rows
    assert found["steps"] == large.manifest.steps
    assert 8 < found["set_size"]["mean"] < 13
    measured = cache_scale.batches(tmp_path / "small")
    assert measured["batches"] == len(small) // cache_scale.BATCH + 1
