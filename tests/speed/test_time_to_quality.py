"""Time to quality: where a curve crosses, what counts, and the divergence that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import time_to_quality
from benchmarks.speed.workers.held_out import forward_kl, write_held_out
from benchmarks.time_to_quality import PEERS, Point, crossing, learning_curve, summary

from tiny import tiny_model

CURVE = [Point(0, 0.0, 0.0, 2.0), Point(5, 10.0, 8.0, 1.0), Point(10, 20.0, 16.0, 0.5)]


def test_a_crossing_is_between_the_evaluations_around_it():
    assert crossing(CURVE, 0.75) == Point(8, 15.0, 12.0, 0.75)
    assert crossing(CURVE, 0.5) == Point(10, 20.0, 16.0, 0.5)
    assert crossing(CURVE, 2.5) == CURVE[0]
    assert crossing(CURVE, 0.4) is None


def test_rollouts_are_counted_by_the_rows_that_were_used():
    peer, forward = PEERS
    gkd = [Point(0, 0.0, 0.0, 2.0), Point(60, 400.0, 300.0, 1.0)]
    faster = [gkd[0], Point(60, 400.0, 160.0, 0.5)]
    curves = {peer: gkd, forward: faster, "kd": CURVE, "slow": CURVE[:1]}
    found = summary(curves, peer, 0.5, batch=16, rows=64)
    assert found["target_kl"] == 1.0
    kd = found["methods"]["kd"]
    assert (kd["updates"], kd["processor_seconds"], kd["with_rollouts"]) == (5, 8.0, 8.0 + 0.5 * 64)
    assert (kd["times_peer"], kd["times_peer_with_rollouts"]) == (300 / 8, 300 / 40)
    assert found["methods"]["slow"] == {"reached": False, "kl": 2.0}
    assert found["methods"][peer]["times_peer_with_rollouts"] == 1.0
    assert found["methods"][forward]["times_peer_with_rollouts"] == pytest.approx(
        300 / (160 * 2 / 3)
    )
    kd = summary(curves, forward, 0.5, batch=16, rows=64)["methods"]["kd"]
    assert (kd["updates"], kd["times_peer"], kd["times_peer_with_rollouts"]) == (10, 10.0, 160 / 48)


class Falling:
    """A worker whose divergence falls by a tenth an update."""

    def __init__(self) -> None:
        self.updates, self.asked, self.last = 0, list[int](), {"processor_seconds": 3.0}

    def ask(self, request: Any) -> dict[str, float]:
        self.asked.append(self.updates)
        return {"kl": 0.9**self.updates}

    def step(self) -> float:
        self.updates += 1
        return 4.0


@pytest.mark.parametrize(
    ("limits", "end"),
    [
        ({"target": None, "most": None}, 12),
        ({"target": 0.6, "most": None}, 5),
        ({"target": None, "most": 20.0}, 10),
    ],
)
def test_a_curve_ends_at_its_target_its_updates_or_its_seconds(limits: Any, end: int):
    worker: Any = Falling()
    curve = learning_curve(worker, updates=12, **limits)
    assert (curve[-1].updates, curve[-1].seconds, curve[-1].processor) == (
        end,
        4.0 * end,
        3.0 * end,
    )
    assert worker.asked == [u for u in (0, 5, 10, 12) if u <= end]


def test_the_divergence_is_that_of_full_distributions(tmp_path: Path):
    teacher, student = tiny_model(seed=1, scale=3.0), tiny_model(seed=2)
    rows = [
        {"prompt_ids": [3, 4], "response_ids": [5, 6, 7]},
        {"prompt_ids": [9], "response_ids": [8]},
    ]
    write_held_out(tmp_path / "kept.pt", teacher, rows)
    kept = torch.load(tmp_path / "kept.pt", weights_only=True)
    total = 0.0
    with torch.no_grad():
        for ids, first in (([3, 4, 5, 6], 1), ([9], 0)):
            p, q = (
                m(torch.tensor([ids])).logits[0, first:].log_softmax(-1) for m in (teacher, student)
            )
            total += float((p.exp() * (p - q)).sum())
    student.train()
    assert forward_kl(student, kept) == pytest.approx(total / 4, rel=1e-3)
    assert student.training
    assert forward_kl(teacher, kept) < 1e-5


def test_every_method_names_an_objective_of_the_worker_and_fields_of_training():
    from benchmarks.speed.workers.ours import OBJECTIVES

    from tdistill.training.config import TrainConfig

    for own in time_to_quality.methods().values():
        assert own["objective"] in OBJECTIVES
        config = TrainConfig(**own.get("training", {}))
        assert config.normaliser_share == 1.0 or OBJECTIVES[own["objective"]].linear_in_normaliser
