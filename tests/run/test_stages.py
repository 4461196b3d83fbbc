"""Stages: done once, done again when something they depend on has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from tdistill.run.folders import files_of_model
from tdistill.run.stages import Stages, read_record


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


@pytest.mark.parametrize(
    "content",
    ["", '{"key": "k"', "\x00", '{"key": "k"}', "[1]", '{"key": "k", "seconds": 1, "rows": 9}'],
)
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


@pytest.mark.parametrize("old", ['"rows": 7', '"seconds": 0', '"files": {}'])
def test_a_record_that_was_changed_does_it_again(
    tmp_path: Path, work: Work, lines: list[str], old: str
):
    run(tmp_path, work, lines)
    path = tmp_path / "stages/one.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, old[:-1] + "8"))
    assert read_record(path) is None
    assert run(tmp_path, work, lines)["rows"] == 7
    assert work.done == 2


MODEL = {"model.safetensors": "weights", "config.json": "{}", "chat_template.jinja": "{{ x }}"}


@pytest.mark.parametrize("name", [*MODEL])
@pytest.mark.parametrize("damage", ["cut", "", "[1, {}]"])
def test_a_model_that_is_not_as_it_was_written_is_made_again(
    tmp_path: Path, lines: list[str], name: str, damage: str
):
    folder, done = tmp_path / "models/kd", []

    def make() -> dict[str, Any]:
        done.append(1)
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in MODEL.items():
            (folder / file).write_text(text)
        return {}

    stages, outputs = Stages(tmp_path, lines.append), files_of_model(folder)
    record = stages.run("kd", "k", outputs, make)
    assert sorted(record["files"]) == sorted(f"models/kd/{file}" for file in MODEL)
    (folder / "README.md").write_text("may be written at any time")
    assert stages.finished("kd", "k", outputs) == record
    (folder / name).write_text(damage)
    assert stages.changed("kd", "k") == [folder / name]
    assert stages.changed("kd", "other") == []
    assert stages.finished("kd", "k", outputs) is None
    assert stages.finished("kd", "k", []) == record  # whoever does not need them
    assert stages.run("kd", "k", outputs, make) == {**record, "sha256": ANY, "seconds": ANY}
    assert len(done) == 2
    assert f"  {folder / name}: not as it was written, so kd is done again" in lines
    (folder / name).unlink()  # to make room
    assert stages.changed("kd", "k") == []


def test_of_the_copy_that_people_take_the_weights_alone_must_stay(tmp_path: Path, lines: list[str]):
    folder = tmp_path / "student"

    def make() -> dict[str, Any]:
        folder.mkdir()
        for file, text in MODEL.items():
            (folder / file).write_text(text)
        return {}

    stages, outputs = Stages(tmp_path, lines.append), files_of_model(folder)
    record = stages.run("publish", "k", outputs, make)
    (folder / "config.json").write_text('{"mine": 1}')
    assert stages.finished("publish", "k", outputs) == record
    (folder / "model.safetensors").write_text("w")
    assert stages.finished("publish", "k", outputs) is None
