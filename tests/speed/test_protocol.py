from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.speed.protocol import ROOT, Worker, WorkerError

TESTS = ROOT / "tests" / "speed"


def toy(folder: Path, start: float) -> Worker:
    log = folder / f"toy-{start}.log"
    return Worker("toy_worker", {"start": start}, log=log, paths=(TESTS,))


def test_workers_answer_one_step_at_a_time_whatever_they_print(tmp_path: Path):
    with toy(tmp_path, 10.0) as first, toy(tmp_path, 20.0) as second:
        assert first.ready == {"hello": 10.0}
        assert [first.step(), second.step(), first.step()] == [11.0, 21.0, 12.0]
        assert first.last == {"seconds": 12.0}
    assert first.process.returncode == second.process.returncode == 0
    assert "a library talks" in first.log.read_text()


def test_a_worker_that_ends_says_its_last_words(tmp_path: Path):
    with (
        toy(tmp_path, 0.0) as worker,
        pytest.raises(WorkerError, match="ended with status 1") as error,
    ):
        worker.ask({"do": "fail"})
    assert "no memory left" in str(error.value)
