"""Caches of several teachers in one: each row keeps its own, and can be chosen or weighed by it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdistill import cli
from tdistill.errors import CacheError, InvalidValueError
from tdistill.run.given import Given
from tdistill.teacher.cache.manifest import read_manifest
from tdistill.teacher.cache.merging import merge_caches
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.verification import verify_cache
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.teacher.inspection import inspect_cache, inspection_text
from teaching import IDENTITY, assert_equal, contents, record

OTHER = replace(IDENTITY, teacher="large", teacher_fingerprint="e" * 16)
MINE = [record((i,), (4, 5, 1), seed=i) for i in range(4)]
THEIRS = [record((i,), (4, 5, 1), seed=10 + i) for i in range(3)]  # of the same responses
MADE_UP = {"min_gain": 1e-9}  # sets of any mass


def caches(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Of two teachers, which have the same names for their shards."""
    identities = {"a": replace(IDENTITY, **MADE_UP), "b": replace(OTHER, **MADE_UP, **changes)}
    for (name, identity), made in zip(identities.items(), (MINE, THEIRS), strict=True):
        with CacheWriter(folder / name, identity) as writer:
            writer.write("score-0", made)
    return folder / "a", folder / "b"


@pytest.fixture
def both(tmp_path: Path) -> Cache:
    merge_caches(tmp_path / "both", caches(tmp_path), several_teachers=True)
    return Cache(tmp_path / "both")


def test_each_row_keeps_its_teacher_and_its_evidence(both: Cache):
    assert both.manifest.teachers == {"f" * 16: "teacher", "e" * 16: "large"}
    assert [s.name for s in both.manifest.shards] == ["score-0-eeeeeeee.arrow", "score-0.arrow"]
    rows = both.rows()
    assert [row.teacher[0] for row in rows] == [*"eee", *"ffff"]
    expected = [made.evidence for made in (*THEIRS, *MINE)]
    for row, evidence in zip(rows, expected, strict=True):
        assert_equal(both.evidence([row]), evidence)
    assert_equal(both.evidence([replace(rows[4], teacher="")]), THEIRS[1].evidence)  # the first
    unknown = "a row of a teacher that the manifest does not name"
    assert not any(unknown in problem for problem in verify_cache(both))
    replace(both.manifest, others=()).write(both.folder)
    assert f"score-0-eeeeeeee.arrow: {unknown}" in verify_cache(Cache(both.folder))


def test_merging_again_brings_nothing(both: Cache, tmp_path: Path):
    before = contents(both.folder)
    again = merge_caches(both.folder, [tmp_path / "b", tmp_path / "a"], several_teachers=True)
    assert again.brought == 0
    assert contents(both.folder) == before
    # A cache that holds several is merged as it is, its teachers with it.
    merge_caches(tmp_path / "copy", [both.folder])
    assert contents(tmp_path / "copy") == before


def test_inspection_lists_them(both: Cache, capsys: pytest.CaptureFixture[str]):
    numbers = inspect_cache(both)
    assert numbers["teachers"] == [
        {"name": "teacher", "fingerprint": "f" * 16, "rows": 4, "steps": 12},
        {"name": "large", "fingerprint": "e" * 16, "rows": 3, "steps": 9},
    ]
    assert f"large ({'e' * 16}): 3 rows, 9 steps" in inspection_text(numbers)
    assert cli.main(["inspect", str(both.folder)]) == 0
    assert "large (eeee" in capsys.readouterr().out


def test_they_are_chosen_and_weighed_by_name_or_fingerprint(both: Cache):
    def rows(**teachers: int) -> Counter[str]:
        capture = CaptureConfig(0.9, None, min_gain=1e-9)
        given = Given(both.folder, capture, lambda prompt: prompt != (0,), teachers=teachers)
        return Counter(row.teacher[0] for row in given.rows(both))

    assert rows(large=1) == {"e": 2}
    assert rows(large=3, teacher=1) == {"e": 6, "f": 3}
    assert rows(**{"f" * 16: 2}) == {"f": 6}
    with pytest.raises(CacheError, match="expected small to be one teacher of the cache, found 0"):
        rows(small=1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokenizer_fingerprint": "1" * 16}, "tokenizer_fingerprint: expected"),
        ({"vocabulary_size": 80}, "vocabulary_size: expected 64, found 80"),
        ({"captured_top_p": 0.8}, "captured_top_p: expected 0.9, found 0.8"),
    ],
)
def test_teachers_that_mean_other_things_are_refused(
    changes: dict[str, Any], text: str, tmp_path: Path
):
    with pytest.raises(CacheError, match=text):
        merge_caches(tmp_path / "both", caches(tmp_path, **changes), several_teachers=True)
    assert not (tmp_path / "both").exists()


def test_several_are_merged_only_where_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    a, b = map(str, caches(tmp_path))
    target = str(tmp_path / "both")
    assert cli.main(["merge", target, a, b]) == 2
    assert "or add --several-teachers" in capsys.readouterr().err
    assert cli.main(["merge", target, a, b, "--several-teachers"]) == 0
    assert len(read_manifest(tmp_path / "both").teachers) == 2


@pytest.mark.parametrize("teachers", [{}, {"a": 0}])
def test_a_choice_of_nothing_is_refused(teachers: dict[str, int]):
    with pytest.raises(InvalidValueError, match="teachers"):
        RolloutConfig(cache="x", teachers=teachers)
    with pytest.raises(InvalidValueError, match=r"names of teachers of rollouts\.cache"):
        RolloutConfig(teachers={"a": 1})
