"""No room, no permission, something in the way: one line, whole folders, and nothing is lost."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import Finished, digest, read_json, untimed
from tdistill import cli

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def limited(size: int, *words: str) -> tuple[int, str]:
    """A command whose files may not be larger than so many bytes; its status and its errors."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(
        [sys.executable, "-m", "tdistill", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("size", "there", "absent"),
    [
        (2_000, [], ["cache/manifest.json", "models"]),  # the first shard
        (20_000, ["cache/manifest.json"], ["models/untrained"]),  # a model
        (40_000, ["models/untrained"], ["models/start", "stages/start.json"]),  # a checkpoint
        (250_000, ["student", "metrics.json"], ["report.html", "stages/report.json"]),
    ],
)
@pytest.mark.slow
def test_what_is_finished_stays_when_the_disk_is_full(
    finished: Finished, tmp_path: Path, size: int, there: list[str], absent: list[str]
):
    out = tmp_path / "out"
    words = ["run", str(finished.recipe), "--out", str(out)]
    status, said = limited(size, *words)
    assert status == 2
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")
    assert "expected room to write" in said
    for name in there:
        assert (out / name).exists(), name
    for name in absent:
        assert not (out / name).exists(), name
    for folder in out.rglob("models/*"):
        assert (folder / "model.safetensors").exists(), folder
    assert not list(out.rglob(".*.partial"))
    assert cli.main(words) == 0
    assert untimed(read_json(out / "metrics.json")) == untimed(finished.metrics)
    assert digest(out / "models") == digest(finished.folder / "models")


@pytest.mark.slow
def test_a_model_that_does_not_fit_is_not_there_in_part(finished: Finished, tmp_path: Path):
    teacher = str(finished.recipe.parent / "teacher")
    out = tmp_path / "student"
    words = ["student", "--from", teacher, "--layers", "2", "--out", str(out)]
    status, said = limited(20_000, *words)
    assert (status, len(said.splitlines())) == (2, 1)
    assert "expected room to write" in said
    assert list(tmp_path.iterdir()) == []
    assert cli.main(words) == 0
    assert (out / "model.safetensors").exists()


def test_a_student_is_never_written_over_other_files(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "thesis.txt").write_text("the only copy")
    words = ["student", "--from", str(finished.recipe.parent / "teacher"), "--layers", "2"]
    assert cli.main([*words, "--out", str(tmp_path)]) == 2
    assert "--out: expected a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_file_in_place_of_the_folder_is_refused(
    finished: Finished, tmp_path: Path, below: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("mine")
    words = ["run", str(finished.recipe), "--out", str(tmp_path / "file" / below)]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert f"expected a folder, found a file at {tmp_path / 'file'}; name another" in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(ROOT, reason="everything may be written by this user")
def test_a_folder_without_permission_is_refused(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tmp_path.chmod(0o500)
    try:
        assert cli.main(["run", str(finished.recipe), "--out", str(tmp_path / "out")]) == 2
    finally:
        tmp_path.chmod(0o700)
    assert "expected a folder that may be written" in capsys.readouterr().err
