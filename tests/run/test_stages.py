"""Stages: done once, done again when something they depend on has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tdistill.run.stages import Stages


class Work:
    """Counts how often it was done."""

    def __init__(self, output: Path) -> None:
        self.output, self.done = output, 0

    def __call__(self) -> dict[str, Any]:
        self.done += 1
        self.output.write_text("result")
        return {"rows": 7}


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "output")


@pytest.fixture
def lines() -> list[str]:
    return []


def run(folder: Path, work: Work, lines: list[str], key: str = "k") -> dict[str, Any]:
    return Stages(folder, lines.append).run("one", key, [work.output], work)


def test_a_stage_is_done_once(tmp_path: Path, work: Work, lines: list[str]):
    first = run(tmp_path, work, lines)
    assert (first["rows"], first["key"]) == (7, "k")
    assert first["seconds"] >= 0
    assert run(tmp_path, work, lines) == first
    assert work.done == 1
    assert lines == ["[one]", "[one] done in 0 s", "[one] reused"]


def test_another_key_does_it_again(tmp_path: Path, work: Work, lines: list[str]):
    run(tmp_path, work, lines)
    assert run(tmp_path, work, lines, key="other")["key"] == "other"
    assert work.done == 2


def test_a_missing_output_does_it_again(tmp_path: Path, work: Work, lines: list[str]):
    run(tmp_path, work, lines)
    work.output.unlink()
    run(tmp_path, work, lines)
    assert work.done == 2
    assert work.output.exists()


@pytest.mark.parametrize("content", ["", '{"key": "k"', "\x00"])
def test_a_damaged_record_does_it_again(tmp_path: Path, work: Work, lines: list[str], content: str):
    run(tmp_path, work, lines)
    (tmp_path / "stages/one.json").write_text(content)
    run(tmp_path, work, lines)
    assert work.done == 2


def test_a_failed_stage_leaves_no_record(tmp_path: Path, work: Work, lines: list[str]):
    def fail() -> dict[str, Any]:
        work()
        raise KeyboardInterrupt

    stages = Stages(tmp_path, lines.append)
    with pytest.raises(KeyboardInterrupt):
        stages.run("one", "k", [work.output], fail)
    assert stages.finished("one", "k", [work.output]) is None
    run(tmp_path, work, lines)
    assert work.done == 2


def test_outputs_of_an_interrupted_change_are_not_taken_for_the_old_ones(
    tmp_path: Path, work: Work, lines: list[str]
):
    run(tmp_path, work, lines)

    def fail() -> dict[str, Any]:
        work.output.write_text("half of something else")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path, lines.append).run("one", "other", [work.output], fail)
    run(tmp_path, work, lines)
    assert (work.done, work.output.read_text()) == (2, "result")


def test_records_are_those_of_these_keys(tmp_path: Path, work: Work, lines: list[str]):
    record = run(tmp_path, work, lines)
    stages = Stages(tmp_path, lines.append)
    assert stages.records({"one": "k", "two": "k"}) == {"one": record}
    assert stages.records({"one": "other"}) == {}
    assert [p.name for p in (tmp_path / "stages").iterdir()] == ["one.json"]
    assert json.loads((tmp_path / "stages/one.json").read_text()) == record
