"""Runs that must coincide: interrupted and straight, two processes and one."""

from __future__ import annotations

import os
import pickle
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing

from interrupting import Stop, StopAfter
from tdistill.errors import InvalidValueError
from tdistill.evidence.collator import Collator
from tdistill.training.objectives import BellmanDistill, CriticConfig, Objective, ValueTiltedKD
from tiny import VOCABULARY, tiny_model
from world import END, PAPER, cached, inside_rows, make_trainer, mixed_rows, own_rows, student

PLAIN = replace(PAPER, shift="raw", alpha=10.0, lm_weight=0.5)
TARGET = replace(PAPER, shift="raw", alpha=10.0, successor="target", target_decay=0.6)
SAMPLED = replace(PLAIN, normaliser="sampled", negatives=16)  # a random draw an update
VALUES = ValueTiltedKD(
    critic=CriticConfig(learning_rate=0.5, averaged=0.7), student_share=0.0, shuffled=True
)
ONLINE = replace(PLAIN, second_term="online", student_share=0.5)
TOGETHER = (ONLINE, ValueTiltedKD(lm_weight=0.5, critic=CriticConfig(learning_rate=0.5)))
TEXT = tuple(tuple((7 * i + 3 * j) % VOCABULARY for j in range(6)) for i in range(5))


def dropping_out(seed: int) -> Any:
    """A network whose forward passes draw random numbers."""
    return tiny_model("gpt2", seed=seed, resid_pdrop=0.2)


def test_batches_made_by_other_processes_are_the_same(tmp_path: Path) -> None:
    rows = list(inside_rows(16))
    source = cached(tmp_path / "cache", rows)
    runs = []
    for workers in (0, 2):
        options = {"rows": rows, "source": source, "text": TEXT, "loader_workers": workers}
        trainer = make_trainer(
            tmp_path, BellmanDistill(), steps=5, tokens_per_forward=24, share_prefix=True, **options
        )
        trainer.train()
        runs.append((history(trainer), trainer.model.state_dict()))
    assert len(runs[0][0]) == 5
    assert runs[0][0] == runs[1][0]
    assert all(weight.equal(runs[1][1][name]) for name, weight in runs[0][1].items())


def test_evidence_of_other_processes_must_be_on_disk(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="loader_workers: expected evidence from a cache"):
        make_trainer(tmp_path, PLAIN, loader_workers=1)
    source = cached(tmp_path, mixed_rows())
    sent = pickle.dumps(Collator(source, END))  # what a process that is spawned gets
    assert len(sent) < 1000
    items = list(enumerate(mixed_rows()))
    expected = Collator(source, END)(items).named_tensors()
    found = pickle.loads(sent)(items).named_tensors()
    assert all(tensor.equal(expected[name]) for name, tensor in found.items())


def optimizer_state(trainer: Any) -> list[Tensor]:
    states = trainer.optimizer.state_dict()["state"]
    return [states[i][name] for i in sorted(states) for name in ("exp_avg", "exp_avg_sq", "step")]


def history(trainer: Any) -> list[dict[str, float]]:
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{k: v for k, v in e.items() if k != "tokens_per_second"} for e in entries]


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    "objective",
    [PLAIN, TARGET, SAMPLED, VALUES],
    ids=["residual", "target network", "sampled", "values"],
)
def test_interrupted_and_resumed_is_the_straight_run_bit_for_bit(
    objective: Objective, accumulation: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "rows": list(inside_rows(16)),
        "text": TEXT,
        "steps": 7,  # two updates an epoch: the checkpoint of update 3 is in the middle of one
        "save_steps": 3,
        "gradient_accumulation": accumulation,
        "learning_rate": 1e-2,
    }
    straight = make_trainer(tmp_path / "a", objective, model=dropping_out(1), **options)
    straight.train()
    broken = make_trainer(
        tmp_path / "b", objective, model=dropping_out(1), callbacks=[StopAfter(4)], **options
    )
    with pytest.raises(Stop):
        broken.train()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["checkpoint-3"]
    torch.manual_seed(99)  # nothing of the first process is left
    resumed = make_trainer(tmp_path / "b", objective, model=dropping_out(5), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    pairs = [(straight.model.state_dict(), resumed.model.state_dict())]
    one, two = straight.beside, resumed.beside
    if one.target is not None and two.target is not None:
        pairs.append((one.target.model.state_dict(), two.target.model.state_dict()))
        start = dropping_out(1).state_dict()
        for name, average in pairs[1][0].items():
            assert not average.equal(pairs[0][0][name])
            assert not average.equal(start[name])
    if one.critic is not None and two.critic is not None:
        pairs.append((one.critic.critic.state_dict(), two.critic.critic.state_dict()))
        pairs.append((one.critic.averaged.state_dict(), two.critic.averaged.state_dict()))
        pairs.append((one.means.means(), two.means.means()))
        learned = [(n, w) for pair in pairs[1:] for n, w in pair[0].items() if n != "constant"]
        assert all(weight.any() for _, weight in learned)  # that one is a fold's
    for first, second in pairs:
        assert all(first[name].equal(second[name]) for name in first)
    for one, two in zip(optimizer_state(straight), optimizer_state(resumed), strict=True):
        assert one.equal(two)
    assert history(straight) == history(resumed)
    assert len(history(straight)) == 7


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    losses = []
    for seed in (3, 3, 4):
        trainer = make_trainer(tmp_path, PLAIN, model=dropping_out(1), seed=seed, text=TEXT)
        trainer.train()
        losses.append([entry["loss"] for entry in history(trainer)])
    assert losses[0] == losses[1] != losses[2]


def run_of(folder: Path, objective: Objective, batch_size: int, **options: Any) -> Any:
    # The student's rows stand together: processes and parts differ in their shares of them.
    rows = [*inside_rows(6), *own_rows(8), *mixed_rows()[-2:]]
    trainer = make_trainer(
        folder,
        objective,
        model=student(),
        rows=rows,
        text=TEXT,
        batch_size=batch_size,
        gradient_accumulation=2,
        share_prefix=True,
        **options,
    )
    trainer.train()
    return trainer


def trained(trainer: Any) -> dict[str, Tensor]:
    """The weights of the student, and of its critic."""
    critic = trainer.beside.critic
    named = {} if critic is None else critic.critic.state_dict(prefix="critic.")
    return trainer.model.state_dict() | named


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """A process of a data-parallel run on the CPU."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    # The processes cut their batches into different numbers of parts.
    runs = [run_of(folder, objective, 8, tokens_per_forward=9) for objective in TOGETHER]
    assert runs[0].accelerator.num_processes == 2
    if rank == 0:
        torch.save([(trained(run), history(run)) for run in runs], folder / "result.pt")
    torch.distributed.barrier()
    os._exit(0)  # taking a gloo group down can wait for a peer that is gone


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both: Any = multiprocessing.spawn(one_of_two, (port, tmp_path), 2, join=False, daemon=True)
    limit = time.monotonic() + 300
    while not both.join(timeout=5):
        assert time.monotonic() < limit
    found = torch.load(tmp_path / "result.pt", weights_only=True)
    for objective, (weights, entries) in zip(TOGETHER, found, strict=True):
        alone = run_of(tmp_path / "alone", objective, 8)
        for name, weight in trained(alone).items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-5, msg=name)
        for entry, expected in zip(entries, history(alone), strict=True):
            assert entry.pop("padding") < expected.pop("padding")
            assert entry == pytest.approx(expected, rel=1e-3)
        start = student().state_dict()
        assert all((weights[n] - start[n]).abs().max() > 5e-4 for n in start)
