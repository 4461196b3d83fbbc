"""Verification against hand-made damage under a checksum that matches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from test_row_encoding import changed

from tdistill.errors import CacheError
from tdistill.evidence.tail import Tail
from tdistill.hashing import file_sha256
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.verification import verify_cache
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig
from teaching import CAPTURE, IDENTITY, record, roll, teacher

MADE_UP = replace(IDENTITY, min_gain=1e-9)  # sets of any mass


@pytest.mark.parametrize(
    "capture", [CAPTURE, CaptureConfig(0.9, 12), CaptureConfig(0.7, None, tail_samples=4)]
)
def test_a_sound_cache_has_no_problems(capture: CaptureConfig, tmp_path: Path):
    assert verify_cache(roll(tmp_path, sampling_top_p=0.7, capture=capture)) == []


def test_an_empty_cache_has_no_problems(tmp_path: Path):
    with CacheWriter(tmp_path, IDENTITY):
        pass
    assert verify_cache(Cache(tmp_path)) == []


def rewrite(folder: Path, column: str, change: Callable[[list[Any]], Any]) -> None:
    """Change a column of the first shard and give the shard the checksum of its new content."""
    with CacheWriter(folder, identity_of(teacher(), CAPTURE)) as writer:
        shard = writer.manifest.shards[0]
        path = folder / shard.name
        with pa.OSFile(str(path), "rb") as file:  # not mapped: the file is replaced
            batch = pa.ipc.open_file(file).get_batch(0)
        values = batch.column(column).to_pylist()
        change(values)
        place = batch.schema.get_field_index(column)
        columns = {
            name: pa.array(values, type=batch.column(i).type) if i == place else batch.column(i)
            for i, name in enumerate(batch.schema.names)
        }
        changed = pa.record_batch(columns)
        with pa.ipc.new_file(str(path), changed.schema) as out:
            out.write_batch(changed)
        listed = dataclasses.replace(shard, bytes=path.stat().st_size, sha256=file_sha256(path))
        writer.manifest.with_shard(listed).write(folder)


def cut(values: list[Any]) -> None:
    values[0] = values[0][:-1]


def longer(values: list[Any]) -> None:
    values[0] += b"\0"


def other_prompt(values: list[Any]) -> None:
    values[0] = bytes([values[0][0] ^ 1]) + values[0][1:]


def one_more(values: list[Any]) -> None:
    values[0] += 1


def swap(values: list[Any]) -> None:
    values[0], values[1] = values[1], values[0]


@pytest.mark.parametrize(
    ("column", "change", "problem"),
    [
        ("evidence", cut, "a row that cannot be read"),
        ("evidence", longer, "a row that cannot be read"),
        ("evidence", swap, "a row"),
        ("steps", one_more, "a row that cannot be read"),
        ("prompt_tokens", one_more, "a row"),
        ("evidence", other_prompt, "a row whose key is not that of its tokens"),
        ("key", swap, "a row whose key is not that of its tokens"),
    ],
)
def test_damage_with_a_matching_checksum_is_found(
    column: str, change: Callable[[list[Any]], Any], problem: str, tmp_path: Path
):
    first = roll(tmp_path).manifest.shards[0].name
    rewrite(tmp_path, column, change)
    found = verify_cache(Cache(tmp_path))
    assert len(found) == 1
    assert found[0].startswith(f"{first}: {problem}")


@pytest.mark.parametrize(("count", "name"), [("rows", "row"), ("steps", "step"), ("members",) * 2])
def test_counts_that_differ_from_the_manifest_are_found(count: str, name: str, tmp_path: Path):
    manifest = roll(tmp_path).manifest
    shard = manifest.shards[0]
    wrong = replace(shard, **{count: getattr(shard, count) + 1})
    manifest.with_shard(wrong).write(tmp_path)
    found = verify_cache(Cache(tmp_path))
    assert found == [f"{shard.name}: {name.rstrip('s')} count differs from the manifest"]


def test_tokens_that_cannot_be_are_found(tmp_path: Path):
    twice = changed(ids=[5, 5, 7], action_log_prob=[-3.0, -3.0])
    with CacheWriter(tmp_path, MADE_UP) as writer:
        writer.write("a", [twice, record((3,), (63, 1), seed=1)])
        manifest = writer.manifest
    assert verify_cache(Cache(tmp_path)) == ["a.arrow: a token twice in one set"]
    replace(manifest, identity=replace(MADE_UP, vocabulary_size=63)).write(tmp_path)
    assert "a.arrow: a token id outside the vocabulary" in verify_cache(Cache(tmp_path))


@pytest.mark.parametrize(
    ("ids", "log_probs", "counts", "problem"),
    [
        ([1, 2, 3], [-5.0, -5.0, -5.0], [4, 3, 1], None),
        ([2, 2, 3], [-5.0, -5.0, -5.0], [3, 1, 4], "a tail token twice in one step"),
        ([1, 7, 3], [-5.0, -5.0, -5.0], [4, 3, 1], "a tail token that is in the set"),
        ([1, 2, 3], [-5.0, -0.125, -5.0], [4, 3, 1], "a tail token likelier than the set"),
        ([1, 2, 3], [-5.0, -5.0, -5.0], [3, 3, 1], "a step without 4 tail draws"),
    ],
)
def test_tails_that_cannot_be_are_found(
    ids: list[int], log_probs: list[float], counts: list[int], problem: str | None, tmp_path: Path
):
    plain = changed()
    numbers = torch.tensor(ids), torch.tensor(log_probs), torch.tensor(counts)
    tail = Tail(*numbers, torch.tensor([0, 1, 3]))
    if problem == "a tail token twice in one step":
        tail = replace(tail, offsets=torch.tensor([0, 2, 3]))
    with CacheWriter(tmp_path, replace(MADE_UP, tail_samples=4)) as writer:
        writer.write("a", [replace(plain, evidence=replace(plain.evidence, tail=tail))])
    expected = [] if problem is None else [f"a.arrow: {problem}"]
    assert verify_cache(Cache(tmp_path)) == expected


def test_damage_to_the_file_is_found_on_opening(tmp_path: Path):
    shard = tmp_path / roll(tmp_path).manifest.shards[0].name
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheError, match="differs from its checksum"):
        Cache(tmp_path)


@pytest.mark.parametrize(
    ("claim", "problem"),
    [
        ({"captured_top_p": 0.5}, "a set that goes on where its mass has reached the captured 0.5"),
        ({"captured_top_p": 0.95}, "a set of less mass than the captured 0.95"),
        ({"max_set_size": 2}, "a set larger than the cap of 2"),
    ],
)
def test_what_a_manifest_claims_is_checked_against_the_sets(
    claim: dict[str, Any], problem: str, tmp_path: Path
):
    manifest = roll(tmp_path).manifest
    replace(manifest, identity=replace(manifest.identity, **claim)).write(tmp_path)
    found = verify_cache(Cache(tmp_path))
    assert found == [f"{shard.name}: {problem}" for shard in manifest.shards]
