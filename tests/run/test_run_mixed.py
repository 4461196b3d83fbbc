"""A run whose batches hold rows of the student and of the ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline import write_world
from tdistill import cli
from tdistill.teacher.cache.reader import Cache

pytestmark = pytest.mark.usefixtures("plain_pages")


@pytest.mark.slow
def test_every_source_goes_through_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = write_world(tmp_path / "world")
    settings = yaml.safe_load(recipe.read_text())
    replay = {"refresh_every": 2, "max_age": 4, "rows_per_refresh": 4, "max_new_tokens": 6}
    settings["training"] = {**settings["training"], "replay": replay}
    shares = {"student_share": 0.5, "reference_share": 0.25, "teacher_mix": 0.2}
    settings["objectives"] = {
        "mixed": {"objective": "bellman_distill", **shares},
        "gkd": {"support": "projected"},
        "sft": {"student_share": 0.25},
    }
    settings["distilled"] = "mixed"
    recipe.write_text(yaml.safe_dump(settings))
    command = ["run", str(recipe), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    last = {x: metrics["curves"][x]["mean"] for x in ("mixed", "gkd", "sft")}
    for source in ("teacher", "reference", "mixed"):
        assert last["mixed"][f"set_kl.{source}"][-1] is not None
    assert last["gkd"]["set_kl.student"][-1] is not None
    assert last["sft"]["step_loss.reference"][-1] is not None
    assert last["mixed"]["replay_rows"][-1] == 8.0
    cache = Cache(tmp_path / "out" / "cache")
    assert len(cache.rows(source="score")) == 9  # the training references
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_an_objective_that_needs_the_students_responses_refuses_to_go_without(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = write_world(tmp_path / "world")
    command = ["run", str(recipe), "--out", str(tmp_path / "out"), "--objectives.minillm", "{}"]
    assert cli.main([*command, "--objectives.minillm.student_share", "0"]) == 2
    assert "learns from the student's own responses" in capsys.readouterr().err
    assert not (tmp_path / "out" / "cache").exists()
