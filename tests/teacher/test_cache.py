"""The teacher cache: what goes in comes out, found by content, and damage is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tdistill.core import TopPSets, truncate
from tdistill.errors import CacheError
from tdistill.evidence.evidence import Evidence, concatenate
from tdistill.evidence.rows import Row, row_key
from tdistill.teacher.cache import writer as module
from tdistill.teacher.cache.manifest import MANIFEST, CacheIdentity, Manifest
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.row_encoder import CachedResponse
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig
from teaching import IDENTITY, assert_equal, contents, record, teacher

RECORDS = [
    record((3, 4), (9, 8, 1), seed=1),
    record((5,), (7,), seed=2, source="rollout:0"),
    record((3, 4), (9, 8, 2, 2), seed=3, source="rollout:1"),
    record((6, 6, 6), (1,), seed=4),
]
SHARD = "a-00000.arrow"


def write(folder: Path, *, identity: CacheIdentity = IDENTITY, records: Any = RECORDS) -> Cache:
    """Two shards."""
    with CacheWriter(folder, identity) as writer:
        writer.write("a-00000", records[:3])
        writer.write("a-00001", records[3:])
    return Cache(folder)


def test_rows_and_evidence_come_back_exactly(tmp_path: Path):
    cache = write(tmp_path)
    assert len(cache) == 4
    assert cache.rows() == [r.row for r in RECORDS]
    assert_equal(cache.evidence(cache.rows()), concatenate([r.evidence for r in RECORDS]))
    for r in RECORDS:
        assert_equal(cache.evidence([r.row]), r.evidence)


def test_the_manifest_counts_what_is_there(tmp_path: Path):
    manifest = write(tmp_path).manifest
    assert (manifest.rows, manifest.steps) == (4, 9)
    members = sum(len(r.evidence.sets.ids) for r in RECORDS)
    assert sum(shard.members for shard in manifest.shards) == members
    assert [s.rows for s in manifest.shards] == [3, 1]
    assert [s.bytes for s in manifest.shards] == [
        (tmp_path / s.name).stat().st_size for s in manifest.shards
    ]


def test_a_member_takes_its_token_and_about_a_byte(tmp_path: Path):
    many = [record((i,), tuple(range(2, 60)), seed=i) for i in range(40)]
    members = sum(len(r.evidence.sets.ids) for r in many)
    sizes = {}
    for bits in (6, 16, 17, 18):
        identity = replace(IDENTITY, vocabulary_size=1 << bits)
        cache = write(tmp_path / str(bits), records=many, identity=identity)
        assert_equal(cache.evidence(cache.rows()), concatenate([r.evidence for r in many]))
        sizes[bits] = sum(s.bytes for s in cache.manifest.shards)
    steps = sum(len(r.row.response_ids) for r in many)
    assert sizes[6] < (6 / 8 + 1.5) * members + (6 / 8 + 6) * steps + 100 * 40 + 2500
    # 16 bits instead of 6; from 17 on 14 bits, a table of the 64 tokens, and where it is.
    for bits, stored, table in ((16, 16, 0), (17, 14, 150), (18, 14, 150)):
        expected = (stored - 6) / 8 * (members + steps) + table
        assert sizes[bits] - sizes[6] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("vocabulary", "token"), [(1 << 16, 65_535), (1 << 17, 131_071)])
def test_the_largest_ids_fit(vocabulary: int, token: int, tmp_path: Path):
    sets = TopPSets(torch.tensor([token]), torch.tensor([-0.5]), torch.tensor([0, 1]))
    extreme = CachedResponse(
        Row((token,), (token,), False), Evidence(sets, torch.ones(1), torch.tensor([-0.5])), "score"
    )
    identity = replace(IDENTITY, vocabulary_size=vocabulary)
    cache = write(tmp_path, identity=identity, records=[extreme])
    assert cache.rows() == [extreme.row]
    assert_equal(cache.evidence([extreme.row]), extreme.evidence)


def test_rows_are_found_by_content_in_any_order(tmp_path: Path):
    cache = write(tmp_path)
    for order in ([3, 0, 2, 1], [2, 2, 0], [1]):
        wanted = concatenate([RECORDS[i].evidence for i in order])
        rows = [
            Row(*(getattr(RECORDS[i].row, n) for n in ("prompt_ids", "response_ids")), False)
            for i in order
        ]
        assert_equal(cache.evidence(rows), wanted)


def test_the_address_tells_prompt_from_response():
    keys = {
        row_key(Row(prompt, response, False))
        for prompt, response in [((3, 4), (5,)), ((3,), (4, 5)), ((3, 4), (6,)), ((4, 3), (5,))]
    }
    assert len(keys) == 4
    assert all(len(key) == 16 for key in keys)
    assert row_key(Row((3,), (5,), True)) == row_key(Row((3,), (5,), False))


def test_a_row_written_twice_is_served_once_each_time(tmp_path: Path):
    cache = write(tmp_path, records=[*RECORDS[:2], RECORDS[0], replace(RECORDS[1], source="score")])
    assert len(cache) == 4
    assert cache.rows() == [RECORDS[i].row for i in (0, 1, 0, 1)]
    expected = concatenate([RECORDS[i].evidence for i in (1, 0, 0)])
    assert_equal(cache.evidence([RECORDS[i].row for i in (1, 0, 0)]), expected)


def test_rows_are_chosen_by_source_and_shard(tmp_path: Path):
    cache = write(tmp_path)
    assert cache.rows(source="rollout") == [RECORDS[1].row, RECORDS[2].row]
    assert cache.rows(source="rollout:1") == [RECORDS[2].row]
    assert cache.rows(shard="a-00001") == [RECORDS[3].row]
    assert cache.rows(shard="a-00001", source="rollout") == []


def test_a_row_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(CacheError, match="no evidence for a response of 2 tokens to a prompt of 1"):
        write(tmp_path).evidence([RECORDS[0].row, Row((3,), (4, 5), True)])


def test_sets_are_cut_to_a_smaller_mass(tmp_path: Path):
    cache = write(tmp_path)
    whole = cache.evidence(cache.rows())
    for p in (0.01, 0.3, 0.9):
        cut = cache.evidence(cache.rows(), set_top_p=p)
        expected = truncate(whole.sets, p)
        assert_equal(cut, Evidence(expected, whole.log_normaliser, whole.action_log_prob))
    assert len(cache.evidence(cache.rows(), set_top_p=1e-6).sets.ids) == 9


def test_the_evidence_of_shards_is_that_of_their_rows(tmp_path: Path):
    cache = write(tmp_path)
    first, second = (shard.evidence() for shard in cache.shards())
    assert_equal(first, concatenate([r.evidence for r in RECORDS[:3]]))
    assert_equal(second, RECORDS[3].evidence)
    (alone,) = cache.shards("a-00001")
    assert_equal(alone.evidence(), second)


def test_another_tokenizer_is_refused(tmp_path: Path):
    write(tmp_path)
    Cache(tmp_path, tokenizer_fingerprint="0" * 16)
    with pytest.raises(CacheError, match=f"expected tokenizer abc, found .* {'0' * 16} .*teacher"):
        Cache(tmp_path, tokenizer_fingerprint="abc")


def test_a_larger_mass_than_captured_is_refused(tmp_path: Path):
    cache = write(tmp_path)
    Cache(tmp_path, set_top_p=0.9)
    text = (
        r"expected set_top_p of at most the captured 0\.9, found 0\.95; lower .* or capture again"
    )
    with pytest.raises(CacheError, match=text):
        Cache(tmp_path, set_top_p=0.95)
    with pytest.raises(CacheError, match=text):
        cache.evidence(cache.rows(), set_top_p=0.95)


@pytest.mark.parametrize("place", [0, 0.3, 0.7, -1])
def test_an_altered_byte_is_refused(place: float, tmp_path: Path):
    write(tmp_path)
    data = bytearray((tmp_path / SHARD).read_bytes())
    data[-1 if place == -1 else int(place * len(data))] ^= 1
    (tmp_path / SHARD).write_bytes(data)
    with pytest.raises(CacheError, match="the content differs from its checksum"):
        Cache(tmp_path)


@pytest.mark.parametrize("left", [0, 8, 700, -1])
def test_a_truncated_shard_is_refused(left: int, tmp_path: Path):
    write(tmp_path)
    data = (tmp_path / SHARD).read_bytes()
    (tmp_path / SHARD).write_bytes(data[:left])
    with pytest.raises(CacheError, match=f"expected {len(data)} bytes, found {len(data[:left])};"):
        Cache(tmp_path)


def test_a_missing_shard_is_refused_by_reader_and_writer(tmp_path: Path):
    write(tmp_path)
    (tmp_path / SHARD).unlink()
    with pytest.raises(
        CacheError, match=f"{SHARD}: the manifest lists this shard, the file is missing"
    ):
        Cache(tmp_path)
    with CacheWriter(tmp_path, IDENTITY) as writer:
        assert writer.has("a-00001")
        assert not writer.has("a-00002")
        with pytest.raises(CacheError, match="the file is missing"):
            writer.has("a-00000")


def test_another_version_is_refused(tmp_path: Path):
    write(tmp_path)
    text = (tmp_path / MANIFEST).read_text().replace('"version": 5', '"version": 6')
    (tmp_path / MANIFEST).write_text(text)
    for use in (Cache, lambda folder: CacheWriter(folder, IDENTITY)):
        with pytest.raises(CacheError, match="version 5, found tdistill-cache version 6"):
            use(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher_fingerprint", "e" * 16),
        ("tokenizer_fingerprint", "1" * 16),
        ("vocabulary_size", 65),
        ("captured_top_p", 0.8),
        ("max_set_size", 256),
        ("tail_samples", 8),
    ],
)
def test_other_evidence_is_not_appended(field: str, value: Any, tmp_path: Path):
    write(tmp_path)
    before = contents(tmp_path)
    other: CacheIdentity = replace(IDENTITY, **{field: value})
    held = getattr(IDENTITY, field)
    with pytest.raises(CacheError, match=f"{field}: expected {value}, found {held}") as caught:
        CacheWriter(tmp_path, other)
    assert contents(tmp_path) == before
    # The refused writer let go of the folder, although its error is still at hand.
    CacheWriter(tmp_path, IDENTITY).__exit__(None, None, None)
    assert "write to another folder" in str(caught.value)


def test_the_folder_of_the_teacher_does_not_matter(tmp_path: Path):
    write(tmp_path)
    with CacheWriter(tmp_path, replace(IDENTITY, teacher="moved")) as writer:
        assert writer.has("a-00000")


def test_the_identity_is_the_teachers(tmp_path: Path):
    config = CaptureConfig(0.7, 9)
    identity = identity_of(teacher(), config)
    assert (identity.vocabulary_size, identity.captured_top_p, identity.max_set_size) == (
        64,
        0.7,
        9,
    )
    assert identity.teacher == "tiny-llama"
    assert identity.teacher_fingerprint != identity_of(teacher("gpt2"), config).teacher_fingerprint
    assert (
        identity.tokenizer_fingerprint == identity_of(teacher("gpt2"), config).tokenizer_fingerprint
    )
    assert identity_of(teacher(vocab_size=72), config).vocabulary_size == 64
    assert identity_of(replace(teacher(), name="/some/where/m"), config).teacher == "m"


def test_two_writers_at_once_are_refused(tmp_path: Path):
    with CacheWriter(tmp_path, IDENTITY) as writer:
        with pytest.raises(CacheError, match="another process is writing to this cache; wait"):
            CacheWriter(tmp_path, IDENTITY)
        writer.write("a-00000", RECORDS)
        assert Cache(tmp_path).rows() == [r.row for r in RECORDS]  # reading is not writing
        lock = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        other = [sys.executable, "-c", lock, str(tmp_path / ".lock")]
        assert subprocess.run(other, capture_output=True, check=False).returncode != 0
    assert subprocess.run(other, capture_output=True, check=False).returncode == 0
    with CacheWriter(tmp_path, IDENTITY) as writer:
        assert writer.has("a-00000")


def test_a_crash_between_shard_and_manifest_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "straight")

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with CacheWriter(tmp_path / "broken", IDENTITY) as writer:
        writer.write("a-00000", RECORDS[:3])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Manifest, "write", crash)
            writer.write("a-00001", RECORDS[3:])
    assert (tmp_path / "broken" / "a-00001.arrow").exists()
    assert Cache(tmp_path / "broken").rows() == [r.row for r in RECORDS[:3]]
    with CacheWriter(tmp_path / "broken", IDENTITY) as writer:
        assert writer.has("a-00000")
        assert not writer.has("a-00001")
        writer.write("a-00001", RECORDS[3:])
    assert contents(tmp_path / "broken") == contents(tmp_path / "straight")


def test_a_crash_within_a_shard_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "straight")
    original = module.write_atomically

    def crash(path: Path, content: bytes) -> None:
        path.with_name(f".{path.name}.partial").write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    with CacheWriter(tmp_path / "broken", IDENTITY) as writer:
        writer.write("a-00000", RECORDS[:3])
        monkeypatch.setattr(module, "write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            writer.write("a-00001", RECORDS[3:])
    monkeypatch.setattr(module, "write_atomically", original)
    assert not (tmp_path / "broken" / "a-00001.arrow").exists()
    assert len(Cache(tmp_path / "broken")) == 3
    with CacheWriter(tmp_path / "broken", IDENTITY) as writer:
        writer.write("a-00001", RECORDS[3:])
    assert contents(tmp_path / "broken") == contents(tmp_path / "straight")


def test_an_empty_cache_opens(tmp_path: Path):
    CacheWriter(tmp_path, IDENTITY).__exit__(None, None, None)
    cache = Cache(tmp_path)
    assert len(cache) == 0
    assert cache.rows() == []
