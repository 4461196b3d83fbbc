"""Shards of any bytes, under checksums that match: rows, or an error that says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.errors import CacheError, TdistillError
from tdistill.hashing import file_sha256
from tdistill.teacher.cache.manifest import MANIFEST
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.verification import verify_cache
from teaching import roll


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of one shard."""
    place = tmp_path_factory.mktemp("cache")
    roll(place, batch_size=16)
    return place


def forged(folder: Path, content: bytes) -> None:
    """Put other bytes into the shard, with a manifest that knows them."""
    manifest = Cache(folder).manifest
    (shard,) = manifest.shards
    path = folder / shard.name
    path.write_bytes(content)
    listed = replace(shard, bytes=len(content), sha256=file_sha256(path))
    replace(manifest, shards=(listed,)).write(folder)


def read(folder: Path) -> None:
    """All that a run and the tools do with a cache."""
    cache = Cache(folder)
    rows = cache.rows()
    if rows:
        cache.evidence(rows[:3])
    verify_cache(cache)


@settings(max_examples=120)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=6))
def test_changed_bytes_are_rows_or_a_cache_error(folder: Path, changes: list[tuple[float, int]]):
    manifest = (folder / MANIFEST).read_bytes()
    (shard,) = Cache(folder).manifest.shards
    original = (folder / shard.name).read_bytes()
    content = np.frombuffer(original, dtype=np.uint8).copy()
    for place, by in changes:
        content[int(place * (len(content) - 1))] ^= by
    try:
        forged(folder, content.tobytes())
        read(folder)
    except CacheError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        (folder / shard.name).write_bytes(original)
        (folder / MANIFEST).write_bytes(manifest)
    read(folder)


@settings(max_examples=60)
@given(st.binary(max_size=64) | st.integers(0, 4000))
def test_other_files_and_cut_ones_are_a_cache_error(folder: Path, content: bytes | int):
    manifest = (folder / MANIFEST).read_bytes()
    (shard,) = Cache(folder).manifest.shards
    original = (folder / shard.name).read_bytes()
    cut = content if isinstance(content, bytes) else original[: min(content, len(original) - 1)]
    try:
        forged(folder, cut)
        with pytest.raises(CacheError, match="expected a shard of a teacher cache"):
            read(folder)
    finally:
        (folder / shard.name).write_bytes(original)
        (folder / MANIFEST).write_bytes(manifest)


@settings(max_examples=120)
@given(st.floats(0, 1), st.integers(1, 255), st.booleans())
def test_a_manifest_with_one_other_byte_is_refused_or_means_the_same(
    folder: Path, place: float, by: int, cut: bool
):
    path = folder / MANIFEST
    original, before = path.read_bytes(), Cache(folder).manifest
    content = bytearray(original)
    at = int(place * (len(content) - 1))
    content[at] ^= by
    path.write_bytes(content[:at] if cut else content)
    try:
        assert Cache(folder).manifest == before  # a blank that became another
    except TdistillError as error:
        assert str(folder) in str(error)
    finally:
        path.write_bytes(original)
