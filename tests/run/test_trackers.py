"""Trackers: each training is a run of its own, its files stay, and the result is given to them."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import TensorBoardCallback

from pipeline import Finished, write_world
from tdistill import cli
from tdistill.report.result import read_result
from tdistill.run.trackers import attach, plain_scores
from tdistill.training.tracking import tracked


@pytest.fixture
def tracked_run(tmp_path: Path) -> Iterator[Path]:
    """A recipe of two objectives that reports."""
    recipe = write_world(tmp_path / "world")
    plain = yaml.safe_load(recipe.read_text())
    plain |= {"objectives": {"kd": {}, "sft": {}}, "distilled": "kd"}
    plain["evaluation"]["tuned_temperatures"] = []
    recipe.write_text(yaml.safe_dump(plain))
    yield recipe


def reporting_to(recipe: Path, name: str) -> Path:
    """Run it; returns its folder."""
    out = recipe.parent.parent / "out"
    words = ["--training.report_to", f"[{name}]"]
    assert cli.main(["run", str(recipe), "--out", str(out), *words]) == 0
    return out


def test_a_training_has_a_name_and_a_place_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    ended: list[str] = []
    wandb = SimpleNamespace(run=object(), finish=lambda: ended.append("wandb"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    board = TensorBoardCallback()
    trainer = SimpleNamespace(
        args=SimpleNamespace(run_name=None, project="huggingface"),
        callback_handler=SimpleNamespace(callbacks=[object(), board]),
    )
    with tracked(trainer, tmp_path / "tracking" / "kd-seed-1"):
        assert os.environ["WANDB_PROJECT"] == "tdistill"
        assert ended == []
    assert board.logging_dir == str(tmp_path / "tracking" / "kd-seed-1")
    assert (trainer.args.run_name, trainer.args.project) == ("kd-seed-1", "tdistill")
    assert ended == ["wandb"]
    assert "WANDB_PROJECT" not in os.environ
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "/elsewhere")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with pytest.raises(ValueError, match="training failed"), tracked(trainer, tmp_path / "kd"):
        raise ValueError("training failed")
    assert board.logging_dir == "/elsewhere/kd"
    assert trainer.args.project == os.environ["WANDB_PROJECT"] == "mine"
    assert ended == ["wandb", "wandb"]


@pytest.mark.slow
def test_tensorboard_keeps_every_training_apart(tracked_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    out = reporting_to(tracked_run, "tensorboard")
    places = sorted(path.name for path in (out / "tracking").iterdir())
    assert places == ["kd", "result", "sft"]  # the start has settings of its own
    result = read_result(out / "metrics.json")
    for label in ("kd", "sft"):
        events = EventAccumulator(str(out / "tracking" / label)).Reload()
        logged = [(e.step, e.value) for e in events.Scalars("train/loss")]
        mean = result.curves[label].mean
        assert logged == [
            (step, pytest.approx(loss, abs=1e-4))
            for step, loss in zip(mean["step"], mean["loss"], strict=True)
        ]
    events = EventAccumulator(str(out / "tracking" / "result")).Reload()
    (text,) = events.Tensors("scores/text_summary")
    assert b"| kd | " in text.tensor_proto.string_val[0]


def test_the_table_has_every_model_with_its_intervals(finished: Finished):
    result = read_result(finished.folder / "metrics.json")
    heads, rows = plain_scores(result)
    assert [row[0] for row in rows] == result.models
    place = heads.index("Teacher NLL, greedy")
    own = result.estimate("kd", "teacher_nll", "greedy")
    assert own is not None
    row = next(row for row in rows if row[0] == "kd")
    assert row[place : place + 3] == [own.mean, own.low, own.high]
    assert all(len(row) == len(heads) for row in rows)


def test_a_tracker_that_fails_ends_nothing(finished: Finished, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any) -> None:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setitem(attach.__globals__["_TRACKERS"], "wandb", fail)
    said: list[str] = []
    result = read_result(finished.folder / "metrics.json")
    attach(["none"], result, finished.folder, said.append)
    assert said == []
    attach(["wandb"], result, finished.folder, said.append)
    assert said == ["  wandb did not take the result: no network"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_has_a_run_for_every_training(
    tracked_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    reporting_to(tracked_run, "wandb")
    assert "did not take the result" not in capsys.readouterr().out
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 3  # kd, sft, the result


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_has_a_run_for_every_training(
    tracked_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    reporting_to(tracked_run, "trackio")
    assert "did not take the result" not in capsys.readouterr().out
    (database,) = (tmp_path / "trackio").glob("tdistill*.db")
    with sqlite3.connect(database) as opened:
        runs = {name for (name,) in opened.execute("select distinct run_name from metrics")}
    assert runs == {"kd", "sft", "out-result"}
