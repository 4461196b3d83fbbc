"""Work shared out without a word: shares of one plan, put together to what one process makes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tdistill.errors import CacheError, InvalidValueError
from tdistill.hashing import checksum_of
from tdistill.teacher.cache.merging import Merged, merge_caches
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.verification import verify_cache
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.rollouts import collect_rollouts, planned_shards
from tdistill.teacher.shares import PlanNote, Share, note_of, read_note, read_share, share_folders
from teaching import PROMPTS, contents, roll, settings, teacher


def roll_share(cache: Path, share: Share, **changes: object) -> Path:
    """One share of the plan of :func:`teaching.roll`, beside a cache."""
    config, folder = settings(**changes), share.folder(cache)
    with CacheWriter(folder, identity_of(teacher(), config.capture), beside=cache) as writer:
        note_of(planned_shards(PROMPTS, config), share).write(folder)
        list(collect_rollouts(teacher(), PROMPTS, config, writer, share=share))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.arrow"))


def test_shares_are_every_nth_unit_and_together_all():
    units = list(range(11))
    parts = [Share(number, 4).of(units) for number in (1, 2, 3, 4)]
    assert parts == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7]]
    assert Share().of(units) == units
    assert str(Share(3, 4)) == "3/4"


@pytest.mark.parametrize("text", ["", "2", "2/", "/2", "0/4", "5/4", "-1/4", "1/0", "a/b", "1/2/3"])
def test_a_share_that_is_none_is_refused(text: str):
    with pytest.raises(InvalidValueError, match="shard: expected i/n"):
        read_share(text)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_merged_shares_are_the_cache_of_one_process_byte_for_byte(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    roll(tmp_path / "one")
    target = tmp_path / "many"
    folders = [roll_share(target, Share(number, count)) for number in range(count, 0, -1)]
    assert sorted(name for folder in folders for name in names(folder)) == names(tmp_path / "one")
    merged = merge_caches(target, share_folders(target))
    assert merged == Merged(rows=15, shards=4, brought=4)
    assert contents(target) == contents(tmp_path / "one")
    assert verify_cache(Cache(target)) == []
    monkeypatch.setattr("tdistill.teacher.rollouts.sample_unit", None)  # nothing is sampled again
    with writer_of(target) as writer:
        assert sum(collect_rollouts(teacher(), PROMPTS, settings(), writer)) == 15


def writer_of(folder: Path) -> CacheWriter:
    return CacheWriter(folder, identity_of(teacher(), settings().capture))


def test_shards_are_linked_not_copied(tmp_path: Path):
    folder = roll_share(tmp_path / "cache", Share(1, 1))
    merge_caches(tmp_path / "cache", [folder])
    for name in names(folder):
        assert (tmp_path / "cache" / name).samefile(folder / name)
    assert not list((tmp_path / "cache").glob(".*.partial"))


def test_another_disk_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    folder = roll_share(tmp_path / "cache", Share(1, 1))
    monkeypatch.setattr(os, "link", refused)
    merge_caches(tmp_path / "cache", [folder])
    for name in names(folder):
        assert (tmp_path / "cache" / name).read_bytes() == (folder / name).read_bytes()
        assert not (tmp_path / "cache" / name).samefile(folder / name)


def test_what_no_share_has_made_is_named_and_nothing_is_written(tmp_path: Path):
    roll_share(tmp_path / "cache", Share(1, 3))
    folder = roll_share(tmp_path / "cache", Share(3, 3))
    with pytest.raises(
        CacheError, match=r"expected all 4 units of its plan, found 3; .* --shard 2/3 to its end"
    ):
        merge_caches(tmp_path / "cache", share_folders(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    (folder / "manifest.json").unlink()
    with pytest.raises(CacheError, match="expected a teacher cache"):
        merge_caches(tmp_path / "cache", share_folders(tmp_path / "cache"))


def test_what_the_cache_has_is_not_shared_out_again(tmp_path: Path):
    """A run of one process that was interrupted goes on as shares."""
    target, config = tmp_path / "cache", settings()
    with writer_of(target) as writer:
        next(collect_rollouts(teacher(), PROMPTS, config, writer))
    folders = [roll_share(target, Share(number, 2)) for number in (1, 2)]
    assert [len(names(folder)) for folder in folders] == [1, 2]
    assert merge_caches(target, folders).brought == 3
    roll(tmp_path / "one")
    assert contents(target) == contents(tmp_path / "one")
    assert merge_caches(target, folders).brought == 0


def test_shares_of_several_counts_and_other_prompts_go_together(tmp_path: Path):
    target = tmp_path / "cache"
    folders = [roll_share(target, Share(1, 2)), roll_share(target, Share(2, 2))]
    folders.append(roll_share(target, Share(2, 4)))  # made twice, the same
    other = roll(tmp_path / "other", [(30, 31)])
    assert merge_caches(target, [*folders, other.folder]).rows == 15 + 3


def test_other_evidence_is_refused(tmp_path: Path):
    target = tmp_path / "cache"
    folder = roll_share(target, Share(1, 1))
    wide = roll(tmp_path / "wide", capture=CaptureConfig(0.95, None))
    with pytest.raises(CacheError, match=r"captured_top_p: expected 0\.9, found 0\.95"):
        merge_caches(target, [folder, wide.folder])
    merge_caches(target, [folder])
    with pytest.raises(CacheError, match=r"captured_top_p: expected 0\.9, found 0\.95"):
        merge_caches(target, [wide.folder])


def test_two_shards_of_one_name_are_not_mixed(tmp_path: Path):
    first, second = (roll(tmp_path / name, n=n).folder for name, n in (("a", 3), ("b", 4)))
    manifest = second / "manifest.json"
    text = manifest.read_text()
    for ours, theirs in zip(names(first), names(second), strict=False):
        text = text.replace(theirs, ours)
        (second / theirs).rename(second / ours)
    content = json.loads(text)
    content["sha256"] = checksum_of(content)
    manifest.write_text(json.dumps(content))
    with pytest.raises(CacheError, match="expected the shard of that name that another cache has"):
        merge_caches(tmp_path / "cache", [first, second])


def test_a_damaged_shard_is_not_brought(tmp_path: Path):
    folder = roll_share(tmp_path / "cache", Share(1, 1))
    (folder / names(folder)[2]).write_bytes(b"short")
    with pytest.raises(CacheError, match=r"expected .* bytes, found 5"):
        merge_caches(tmp_path / "cache", [folder])
    assert names(tmp_path / "cache") == []


def test_a_note_is_read_as_written_and_garbage_refused(tmp_path: Path):
    note = PlanNote("rollouts-abc", 12, Share(2, 5))
    note.write(tmp_path)
    assert read_note(tmp_path) == note
    assert note.names[-1] == "rollouts-abc-00011"
    assert read_note(tmp_path / "absent") is None
    good = '{"plan": "a", "units": 3, "share": [1, 2]}'
    (tmp_path / "share.json").write_text(good)
    assert read_note(tmp_path) == PlanNote("a", 3, Share(1, 2))
    bomb, infinite = good.replace("3", "1" + "0" * 12), good.replace("3", "Infinity")
    bare = ("", "[]", "[" * 100_000, '{"plan": "a"}', '{"plan": "a", "units": 3, "share": 7}')
    for garbage in (*bare, bomb, infinite, good.replace("[1, 2]", "{}")):
        (tmp_path / "share.json").write_text(garbage)
        with pytest.raises(CacheError, match="expected the note of a share"):
            read_note(tmp_path)


def test_folders_of_shares_are_found_by_their_names(tmp_path: Path):
    for name in ("cache-10-of-12", "cache-2-of-12", "cache-test-1-of-2", "cache-x-of-2", "cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "cache-1-of-12").write_text("a file")
    found = [folder.name for folder in share_folders(tmp_path / "cache")]
    assert found == ["cache-2-of-12", "cache-10-of-12"]
