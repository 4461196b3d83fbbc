"""Rates of this machine: what is measured is what the plan then says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import write_world
from tdistill.errors import InvalidValueError
from tdistill.planning import probe
from tdistill.planning.memory import Job
from tdistill.planning.plan import job_of
from tdistill.planning.probe import probed, timed_work
from tdistill.planning.scale import Known
from tdistill.planning.work import work_of
from tdistill.recipe import read_recipe


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A tiny one on this machine's CPU."""
    monkeypatch.setattr(probe, "device_here", lambda: "cpu")
    return job_of(read_recipe(write_world(tmp_path)), Known())


def test_a_probe_measures_both_rates(job: Job) -> None:
    found = probed(job, seconds=0.1).device
    assert found.measured
    assert 1e5 < found.speed < 1e13
    assert 0.0 <= found.overhead < 1.0
    assert found.memory == job.device.memory


def test_sampling_takes_what_a_layer_was_measured_to_take(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "training_speed", lambda job, seconds: 1e18)
    monkeypatch.setattr(probe, "decoding_seconds", lambda job, seconds: 0.5)
    rollouts = work_of(probed(job))[0]
    steps = 9 * 2 * 8 / 4  # prompts, responses, tokens; four rows of a batch at a time
    assert rollouts.seconds == pytest.approx(steps * 3 * 0.5, rel=1e-6)


def test_another_machine_cannot_be_probed(job: Job) -> None:
    there = replace(job, device=replace(job.device, name="h100"))
    with pytest.raises(InvalidValueError, match="expected --device cpu, this machine's, with"):
        probed(there)


def test_the_first_go_is_left_out() -> None:
    went: list[int] = []
    assert timed_work(lambda: went.append(0), 0.0) < 0.1
    assert len(went) >= 2
