"""What happens to a machine while a run goes on: nothing wrong is trained on, nothing is lost."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import Finished, digest, read_json, untimed
from tdistill import cli


def started(*words: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tdistill", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def assert_same_run(finished: Finished, out: Path) -> None:
    """The same scores, curves, models and caches, byte for byte where they are files."""
    assert untimed(read_json(out / "metrics.json")) == untimed(finished.metrics)
    for name in ("student", "models", "cache", "cache-test"):
        assert digest(out / name) == digest(finished.folder / name), name
    assert not any((out / "checkpoints").iterdir())
    assert not list(out.rglob(".*.partial"))


@pytest.mark.slow
def test_killed_at_fifty_random_moments(finished: Finished, tmp_path: Path):
    """Over rollouts, scoring, training, evaluation and report: at least half of the runs die."""
    out, chance, killed = tmp_path / "out", random.Random(0), 0
    words = ["run", str(finished.recipe), "--out", str(out)]
    began = time.monotonic()
    started(*words).communicate()
    whole = time.monotonic() - began  # on this machine, as busy as it is
    shutil.rmtree(out)
    for _ in range(50):
        process = started(*words)
        try:
            process.communicate(timeout=chance.uniform(0.2, 0.9) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            continue
        assert_same_run(finished, out)
        shutil.rmtree(out)  # begin anew, to die early as often as late
    assert killed >= 25
    assert cli.main(words) == 0
    assert_same_run(finished, out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_any_command_in_one_line(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stopped(words: list[str]) -> int:
        os.kill(os.getpid(), number)
        time.sleep(10)
        return 0

    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    # A process that was started in the background may have been told to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("tdistill.cli.tools.objectives", stopped)
    try:
        assert cli.main(["objectives"]) == 130
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    said = capsys.readouterr().err
    assert said == "\ninterrupted; the same command continues from here\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_clean_and_the_same_command_goes_on(
    finished: Finished, tmp_path: Path, number: signal.Signals
):
    out = tmp_path / "out"
    words = ["run", str(finished.recipe), "--out", str(out)]
    process = started(*words)
    deadline = time.monotonic() + 100
    while not (out / "checkpoints/kd").exists():  # in the middle of training
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "\ninterrupted; the same command continues from here\n"
    assert (out / "models/seqkd/model.safetensors").exists()
    assert cli.main(words) == 0
    assert_same_run(finished, out)


def truncate(shards: list[Path]) -> None:
    shards[0].write_bytes(shards[0].read_bytes()[:-8])


def flip(shards: list[Path]) -> None:
    content = bytearray(shards[0].read_bytes())
    content[len(content) // 2] ^= 1
    shards[0].write_bytes(content)


def swap(shards: list[Path]) -> None:
    contents = [shard.read_bytes() for shard in shards]
    for shard, content in zip(shards, contents[::-1], strict=True):
        shard.write_bytes(content)


def remove(shards: list[Path]) -> None:
    shards[0].unlink()


@pytest.mark.parametrize(
    "damage", [truncate, flip, pytest.param(swap, marks=pytest.mark.slow), remove]
)
def test_a_damaged_shard_is_never_trained_on(
    finished: Finished,
    tmp_path: Path,
    damage: Callable[[list[Path]], None],
    capsys: pytest.CaptureFixture[str],
):
    out = shutil.copytree(finished.folder, tmp_path / "out")
    shards = sorted((out / "cache").glob("rollouts-*.arrow"))[:2]
    damage(shards)
    before = digest(out / "models")
    words = ["run", str(finished.recipe), "--out", str(out), "--objectives.kd.discount", "0.5"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert any(shard.name in error for shard in shards)
    assert "restore the file, or take it out with `tdistill verify CACHE --drop`" in error
    kept = {name: content for name, content in before.items() if not name.startswith("kd/")}
    assert {n: c for n, c in digest(out / "models").items() if not n.startswith("kd/")} == kept
    assert not (out / "models/kd").exists()
    replaced = digest(out / "replaced/models/kd")
    assert replaced == digest(finished.folder / "models/kd")
    assert cli.main(["verify", str(out), "--drop"]) == 0
    said = capsys.readouterr().out
    taken = 2 if damage is swap else 1
    assert said.count("rollouts-") == taken
    assert "sound" in said
    if damage is swap:  # the others would end in the same way
        assert cli.main(["run", str(finished.recipe), "--out", str(out)]) == 0
        assert_same_run(finished, out)


@pytest.mark.slow
def test_damaged_weights_of_a_finished_run_are_made_again(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = shutil.copytree(finished.folder, tmp_path / "out")
    cut, flipped = out / "models/kd/model.safetensors", out / "student/model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])
    flip([flipped])
    (out / "models/seqkd/tokenizer.json").write_text("{}")
    words = ["run", str(finished.recipe), "--out", str(out)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"{cut}: not as it was written, so kd is done again" in said
    assert f"{flipped}: not as it was written, so publish is done again" in said
    assert "models/seqkd/tokenizer.json: not as it was written, so seqkd is done again" in said
    assert "[sft] reused" in said
    assert "[evaluate-kd] reused" in said
    assert_same_run(finished, out)
    assert cli.main(words) == 0
    assert "this run is complete; nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps = itertools.cycle([0.0, 86_400.0, -3 * 86_400.0, 1e9])
    original = time.time
    monkeypatch.setattr(time, "time", lambda: original() + next(steps))
    out = tmp_path / "out"
    assert cli.main(["run", str(finished.recipe), "--out", str(out)]) == 0
    assert_same_run(finished, out)
