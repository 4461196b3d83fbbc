"""Scoring in shares, with the options of data, and putting the shares together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import digest
from tdistill import cli
from tdistill.models.language_model import save
from tdistill.teacher.cache.manifest import read_manifest
from tdistill.teacher.cache.reader import Cache
from tiny import tiny_lm


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    save(tiny_lm("llama", scale=3.0), tmp_path / "teacher")
    return str(tmp_path / "teacher")


def write(path: Path) -> str:
    letters = "abcdefghij"
    rows = [{"prompt": f"{x} b", "completion": [f" {x} c", " d e f", " g"]} for x in letters]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def score(teacher: str, data: str, cache: Path, *more: str) -> int:
    words = ["--teacher", teacher, "--data", data, "--cache", str(cache), "--batch-size", "1"]
    return cli.main(["score", *words, "--template", "plain", *more])


def test_every_output_of_a_row_is_scored(teacher: str, tmp_path: Path):
    data = write(tmp_path / "rows.jsonl")
    assert score(teacher, data, tmp_path / "cache", "--limit", "2") == 0
    rows = Cache(tmp_path / "cache").rows()
    assert len(rows) == 6
    assert len({row.prompt_ids for row in rows}) == 2
    assert sorted(len(row.response_ids) for row in rows) == [2, 2, 3, 3, 4, 4]
    assert score(teacher, data, tmp_path / "short", "--max-response-tokens", "2") == 0
    rows = Cache(tmp_path / "short").rows()
    assert {(len(row.response_ids), row.ended) for row in rows} == {(2, False), (2, True)}


def test_the_precision_of_the_teacher_is_an_option(teacher: str, tmp_path: Path):
    """Weights in another precision are another teacher; evidence is close to that of the first."""
    data = write(tmp_path / "rows.jsonl")
    assert score(teacher, data, tmp_path / "whole", "--limit", "2") == 0
    assert score(teacher, data, tmp_path / "half", "--limit", "2", "--dtype", "bfloat16") == 0
    whole, half = Cache(tmp_path / "whole"), Cache(tmp_path / "half")
    ours, theirs = (c.manifest.identity.teacher_fingerprint for c in (whole, half))
    assert ours != theirs
    rows = whole.rows()
    apart = whole.evidence(rows).action_log_prob - half.evidence(rows).action_log_prob
    assert 0.0 < float(apart.abs().mean()) < 0.1


def test_shares_of_scoring_merge_to_the_cache_of_one_process(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, many = write(tmp_path / "rows.jsonl"), tmp_path / "many"
    assert score(teacher, data, tmp_path / "one") == 0
    for number in (2, 1, 3):
        assert score(teacher, data, many, "--shard", f"{number}/3") == 0
    assert "share 3/3 done; at the end of all: tdistill merge" in capsys.readouterr().out
    assert not many.exists()
    assert cli.main(["merge", str(many)]) == 0
    assert "30 responses in 4 shards, 4 of them from 3 caches" in capsys.readouterr().out
    assert digest(many) == digest(tmp_path / "one")


def test_a_merge_without_shares_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["merge", str(tmp_path / "cache")]) == 2
    assert "expected caches to merge into it, found none beside it" in capsys.readouterr().err


def test_caches_from_elsewhere_are_merged_by_name(teacher: str, tmp_path: Path):
    first, second = write(tmp_path / "a.jsonl"), tmp_path / "b.jsonl"
    second.write_text(json.dumps({"prompt": "z", "completion": " y"}))
    assert score(teacher, first, tmp_path / "a") == 0
    assert score(teacher, str(second), tmp_path / "b") == 0
    words = [str(tmp_path / name) for name in ("both", "a", "b")]
    assert cli.main(["merge", *words]) == 0
    assert read_manifest(tmp_path / "both").rows == 31


def test_a_share_that_is_none_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert score("absent", "absent", tmp_path / "cache", "--shard", "4/3") == 2
    assert "shard: expected i/n with i from 1 to n, found 4/3" in capsys.readouterr().err
    for share in ("4/3", "x"):
        assert cli.main(["rollouts", "r.yaml", "--out", "o", f"--shard={share}"]) == 2
        assert "shard: expected i/n" in capsys.readouterr().err
