"""Shards are read whole once; what has changed since, or is asked for by `verify`, again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tdistill import cli
from tdistill.errors import CacheError
from tdistill.teacher.cache import manifest as module
from tdistill.teacher.cache.checked import NOTE, Checked
from tdistill.teacher.cache.merging import merge_caches
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter
from teaching import IDENTITY, record

NAMES = ["a-0.arrow", "a-1.arrow"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of two shards, written an hour ago."""
    place = tmp_path / "cache"
    with CacheWriter(place, IDENTITY) as writer:
        writer.write("a-0", [record((3,), (4, 1))])
        writer.write("a-1", [record((5,), (6,))])
    for name in NAMES:
        os.utime(place / name, (time.time() - 3600,) * 2)
    return place


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read."""
    names: list[str] = []
    original = module.file_sha256

    def counted(path: Path) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(module, "file_sha256", counted)
    return names


def test_shards_are_read_whole_once(folder: Path, read: list[str]):
    Cache(folder)
    assert sorted(read) == NAMES
    assert set(json.loads((folder / NOTE).read_text())) == set(NAMES)
    Cache(folder)
    with CacheWriter(folder, IDENTITY) as writer:
        assert writer.has("a-0")
    assert sorted(read) == NAMES


def test_what_has_changed_since_is_read_again(folder: Path, read: list[str]):
    Cache(folder)
    read.clear()
    os.utime(folder / NAMES[0], (time.time() - 60,) * 2)
    Cache(folder)
    assert read == [NAMES[0]]
    content = bytearray((folder / NAMES[1]).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / NAMES[1]).write_bytes(content)
    with pytest.raises(CacheError, match="differs from its checksum"):
        Cache(folder)
    with (
        CacheWriter(folder, IDENTITY) as writer,
        pytest.raises(CacheError, match="differs from its checksum"),
    ):
        writer.has("a-1")


def test_a_file_that_has_just_changed_is_read_each_time(folder: Path, read: list[str]):
    """Two changes within a tick of the clock have one time."""
    os.utime(folder / NAMES[0])
    Cache(folder)
    Cache(folder)
    assert sorted(read) == [NAMES[0], *NAMES]


def test_verify_always_reads(folder: Path, read: list[str], capsys: pytest.CaptureFixture[str]):
    """Damage that leaves size and time alone is seen by `verify`, and by nothing else."""
    Cache(folder)
    path = folder / NAMES[0]
    changed = path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    place = bytes(content).index(b"score")  # where the row came from
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(changed, changed))
    read.clear()
    Cache(folder)
    assert read == []
    assert cli.main(["verify", str(folder)]) == 2
    assert "differs from its checksum" in capsys.readouterr().err
    assert NAMES[0] in read
    assert cli.main(["verify", str(folder), "--drop"]) == 0
    assert f"taken out: {NAMES[0]}" in capsys.readouterr().out


@pytest.mark.parametrize("note", ["", "[]", '{"a-0.arrow": 3}', "\x00", '{"a-0.arrow": []}'])
def test_a_note_of_something_else_is_no_knowledge(note: str, folder: Path, read: list[str]):
    (folder / NOTE).write_text(note)
    Cache(folder)
    assert sorted(read) == NAMES


def test_a_note_that_cannot_be_written_is_left_out(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr("tdistill.teacher.cache.checked.write_atomically", refuse)
    Cache(folder)
    Cache(folder)
    assert sorted(read) == sorted(2 * NAMES)
    assert not (folder / NOTE).exists()


def test_linked_shards_are_known_where_their_source_is(
    folder: Path, tmp_path: Path, read: list[str]
):
    Cache(folder)
    assert merge_caches(tmp_path / "merged", [folder]).brought == 2
    Cache(tmp_path / "merged")
    assert sorted(read) == NAMES


def test_the_first_that_is_missing_is_named(folder: Path):
    Cache(folder)
    shards = Cache(folder).manifest.shards
    for name in NAMES:
        (folder / name).unlink()
    with pytest.raises(CacheError, match=f"{NAMES[0]}: .* the file is missing"):
        Checked(folder).check(shards)
