"""The manifest of a cache: read as written, refused when it is anything else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdistill.errors import CacheError
from tdistill.teacher.cache.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    check_shard,
    read_manifest,
)
from teaching import IDENTITY

FIRST = Shard("a-00000.arrow", 3, 20, 60, 500, "ab" * 32, 0)
SECOND = Shard("a-00001.arrow", 2, 5, 9, 300, "cd" * 32, 0)


def test_a_manifest_is_read_as_written(tmp_path: Path):
    written = Manifest(IDENTITY).with_shard(SECOND).with_shard(FIRST)
    written.write(tmp_path)
    assert read_manifest(tmp_path) == written
    assert (written.rows, written.steps) == (5, 25)
    content = json.loads((tmp_path / MANIFEST).read_text())
    assert content["format"] == "tdistill-cache"
    assert content["version"] == 5
    assert content["counts"] == {"rows": 5, "steps": 25}


def test_shards_are_in_order_of_names_and_replaced_by_name():
    manifest = Manifest(IDENTITY).with_shard(SECOND).with_shard(FIRST)
    assert manifest.shards == (FIRST, SECOND)
    rewritten = replace(FIRST, rows=4)
    assert manifest.with_shard(rewritten).shards == (rewritten, SECOND)
    assert manifest.shards == (FIRST, SECOND)


def test_no_manifest_is_no_cache(tmp_path: Path):
    with pytest.raises(CacheError, match=r"expected a teacher cache .* found none; make one with"):
        read_manifest(tmp_path)
    with pytest.raises(CacheError, match="absent"):
        read_manifest(tmp_path / "absent")


@pytest.mark.parametrize(
    "garbage",
    ["", "{", "[]", "null", "3", '"text"', "{}", '{"format": "tdistill-cache"}', "\x00\x01"],
)
def test_garbage_is_refused(garbage: str, tmp_path: Path):
    (tmp_path / MANIFEST).write_text(garbage)
    with pytest.raises(
        CacheError, match=r"manifest\.json: expected the manifest of a teacher cache"
    ):
        read_manifest(tmp_path)


def test_an_entry_that_is_there_twice_is_refused(tmp_path: Path):
    Manifest(IDENTITY, (FIRST,)).write(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace('"rows": 3', '"rows": 300, "rows": 3', 1))
    with pytest.raises(CacheError, match=r"found the key rows twice in one object, first with 300"):
        read_manifest(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe\x80")
    with pytest.raises(CacheError, match="expected the manifest of a teacher cache"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("version", 6, "format tdistill-cache version 5, found tdistill-cache version 6"),
        ("version", 2, "version 5, found tdistill-cache version 2"),
        ("version", "1", "version 5, found"),
        ("version", None, "found tdistill-cache version None"),
        ("format", "other-cache", "found other-cache version 5"),
        ("identity", {}, "identity has 8 problems:\n  - teacher: missing; expected a string"),
        ("identity", [1], "identity: expected an object of teacher, .*, found none; restore"),
        ("shards", [{"name": "x"}], r"shards\[0\] has 6 problems"),
        ("shards", 5, "shards: expected a list, found none; restore the file, or make"),
        ("shards", None, "shards: expected a list, found none"),
        ("others", {}, "others: expected a list, found none"),
        ("others", [None], r"others\[0\]: expected an object of teacher, teacher_fingerprint"),
    ],
)
def test_other_versions_and_damaged_entries_are_refused(
    field: str, value: Any, text: str, tmp_path: Path
):
    Manifest(IDENTITY, (FIRST,)).write(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(content | {field: value}))
    with pytest.raises(CacheError, match=text):
        read_manifest(tmp_path)


@pytest.mark.parametrize("section", ["identity", "shards"])
def test_unknown_entries_are_refused(section: str, tmp_path: Path):
    Manifest(IDENTITY, (FIRST,)).write(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    (content["identity"] if section == "identity" else content["shards"][0])["surprise"] = 1
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CacheError, match="surprise"):
        read_manifest(tmp_path)


def test_a_shard_is_checked_against_its_entry(tmp_path: Path):
    file = tmp_path / "a.arrow"
    file.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    shard = Shard("a.arrow", 1, 1, 1, 3, digest, 0)
    check_shard(tmp_path, shard)
    file.write_bytes(b"abd")
    with pytest.raises(
        CacheError, match=r"a\.arrow: the content differs from its checksum; restore"
    ):
        check_shard(tmp_path, shard)
    file.write_bytes(b"ab")
    with pytest.raises(CacheError, match="expected 3 bytes, found 2"):
        check_shard(tmp_path, shard)
    file.unlink()
    with pytest.raises(CacheError, match="the manifest lists this shard, the file is missing"):
        check_shard(tmp_path, shard)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("identity", "captured_top_p", 0.5),
        ("identity", "teacher_fingerprint", "e" * 16),
        ("shards", "rows", 4),
        ("shards", "sha256", "cd" * 32),
        ("counts", "rows", 7),
    ],
)
def test_an_edited_manifest_is_refused(section: str, field: str, value: Any, tmp_path: Path):
    Manifest(IDENTITY, (FIRST,)).write(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    part = content[section][0] if section == "shards" else content[section]
    assert part[field] != value
    part[field] = value
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CacheError, match="differs from its checksum: it was changed after it was"):
        read_manifest(tmp_path)


def test_a_manifest_without_a_checksum_is_refused_and_layout_does_not_matter(tmp_path: Path):
    Manifest(IDENTITY, (FIRST,)).write(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    reordered = dict(sorted(content.items(), reverse=True))
    (tmp_path / MANIFEST).write_text(json.dumps(reordered))
    assert read_manifest(tmp_path).shards == (FIRST,)
    del content["sha256"]
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CacheError, match="differs from its checksum"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../a.arrow", "/etc/a.arrow", "x/a.arrow", "..\\a.arrow", "..", "", "a.txt", "a/../b.arrow"],
)
def test_a_shard_outside_the_folder_is_refused(name: str, tmp_path: Path):
    Manifest(IDENTITY, (replace(FIRST, name=name),)).write(tmp_path)
    with pytest.raises(CacheError, match=r"expected shards that are \.arrow files of this folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        (
            "rows",
            "3",
            r"json: shards\[0\]: rows: expected an integer, found the string '3'; restore",
        ),
        ("rows", True, "rows: expected an integer, found true"),
        ("rows", -1, r"shards\[0\]: rows: expected a number from 0 to 9007199254740992, found -1"),
        ("steps", 1 << 60, "steps: expected a number from 0"),
        ("bytes", 2.5, "bytes: expected an integer, found the number 2.5"),
        ("name", 5, "name: expected a string, found the integer 5"),
        ("sha256", None, "sha256: expected a string, found null"),
        ("sha256", [[{}]], "sha256: expected a string, found a list of 1"),
    ],
)
def test_entries_of_the_wrong_kind_are_refused(field: str, value: Any, text: str, tmp_path: Path):
    Manifest(IDENTITY, (FIRST,)).write(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    content["shards"][0][field] = value
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CacheError, match=text):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5_000_000])
def test_bombs_end_in_one_line(text: str, tmp_path: Path):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CacheError) as caught:
        read_manifest(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400
