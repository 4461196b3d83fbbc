"""kill -9 at any moment, then the same command: it completes with the same result."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import Finished, digest, kill_at, read_json, untimed
from tdistill import cli


def command(finished: Finished, out: Path) -> list[str]:
    return ["run", str(finished.recipe), "--out", str(out)]


def assert_same_run(finished: Finished, out: Path) -> None:
    """The same scores, curves, models and caches, byte for byte where they are files."""
    assert untimed(read_json(out / "metrics.json")) == untimed(finished.metrics)
    for name in ("student", "models", "cache", "cache-test"):
        assert digest(out / name) == digest(finished.folder / name), name
    assert not any((out / "checkpoints").iterdir())


@pytest.mark.slow  # a minute; test_seeds.py has a shorter one
def test_killed_again_and_again_it_gives_the_uninterrupted_result(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = command(finished, out)

    said = kill_at("between-shard-and-manifest", *words)
    assert said.endswith("[rollouts]\n")
    assert len(list((out / "cache").glob("*.arrow"))) == 2  # one of them is not listed yet

    said = kill_at("inside-a-checkpoint", *words)
    assert said.endswith("[start]\n")
    assert (out / "checkpoints/start/checkpoint-2/model.safetensors").exists()
    assert not (out / "checkpoints/start/checkpoint-2/trainer_state.json").exists()

    said = kill_at("before-the-record-of-a-model", *words)
    assert "[rollouts] reused" in said
    assert said.endswith("[start]\n")
    assert (out / "models/start/model.safetensors").exists()

    said = kill_at("after-a-checkpoint", *words)
    assert "[sft] done" in said
    assert said.endswith("[kd]\n")
    assert (out / "checkpoints/kd/checkpoint-2/trainer_state.json").exists()
    assert not (out / "models/kd").exists()

    said = kill_at("during-evaluation", *words)
    assert "[sft] reused" in said
    assert said.endswith("[evaluate-start]\n")

    assert cli.main(words) == 0
    said = capsys.readouterr().out
    for stage in ("rollouts", "start", "kd", "bellman_distill", "evaluate-teacher"):
        assert f"[{stage}] reused" in said
    assert "[evaluate-start] done" in said
    assert_same_run(finished, out)


@pytest.mark.slow
def test_checkpoints_of_other_settings_are_not_continued_from(finished: Finished, tmp_path: Path):
    out = tmp_path / "out"
    words = command(finished, out)
    other = ["--start.training.learning_rate", "0.1", "--evaluation.seeds", "1"]
    # The kill leaves a checkpoint of the start phase, made with the other learning rate.
    kill_at("before-the-record-of-a-model", *words, *other)
    assert (out / "checkpoints/start/checkpoint-4/trainer_state.json").exists()
    assert cli.main(words) == 0
    assert_same_run(finished, out)
