"""`--quiet` and `--json` of long work, and the sentence that a run begins with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import Finished, read_json
from tdistill import cli
from tdistill.progress import spoken


def test_a_finished_run_in_events(finished: Finished, capsys: pytest.CaptureFixture[str]):
    words = ["run", "--json", str(finished.recipe), "--out", str(finished.folder)]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.out.splitlines()]
    assert [event["event"] for event in events] == ["message", "result"]
    result = events[-1]
    assert result["numbers"] == str(finished.folder / "metrics.json")
    assert (result["failed"], result["warnings"]) == ({}, {})
    assert result["summary"][1].startswith("The teacher has ")
    assert said.err == ""


def test_a_finished_run_in_few_words(finished: Finished, capsys: pytest.CaptureFixture[str]):
    words = ["run", str(finished.recipe), "--quiet", "--out", str(finished.folder)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"report:  {finished.folder / 'report.html'}",
        f"student: {finished.folder / 'student'}",
        f"numbers: {finished.folder / 'metrics.json'}",
    ]
    assert cli.main(["inspect", str(finished.folder / "cache")]) == 0
    assert spoken() == "words"  # each command anew


def test_rollouts_in_events_say_what_begins_and_ends(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = ["rollouts", str(finished.recipe), "--out", str(out), "--json"]
    assert cli.main([*words, "--rollouts.n", "1"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["text"].startswith(
        "distils teacher into 2 of its layers: samples 1 responses to each prompt of train.jsonl"
    )
    stages = [(e["name"], e["state"]) for e in events if e["event"] == "stage"]
    assert stages == [("rollouts", "begun"), ("rollouts", "done")]
    (last,) = [e for e in events if e["event"] == "progress"][-1:]
    assert (last["what"], last["done"], last["total"]) == ("rollouts", 9, 9)
    assert last["unit"] == "responses"
    done = next(e for e in events if e["event"] == "stage" and e["state"] == "done")
    assert done["seconds"] == read_json(out / "stages" / "rollouts.json")["seconds"]


def test_an_error_is_an_event_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "none.yaml"
    assert cli.main(["run", str(path), "--out", "x", "--json"]) == 2
    said = capsys.readouterr()
    (event,) = map(json.loads, said.out.splitlines())
    assert event["event"] == "error"
    assert f"error: {event['text'].removeprefix('error: ')}\n" == said.err


def test_other_commands_keep_their_own_json(finished: Finished, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["inspect", str(finished.folder / "cache"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 18
