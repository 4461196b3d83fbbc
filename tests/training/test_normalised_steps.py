"""A share of the steps normalised over the vocabulary: unbiased, the same in whatever batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.core import evenly_spread
from tdistill.errors import InvalidValueError
from tdistill.evidence.batch import Batch
from tdistill.models.score_forms import DenseStepScores
from tdistill.models.set_scores import SetScores
from tdistill.teacher.config import CaptureConfig
from tdistill.training.normalised_steps import with_normalised_steps
from tdistill.training.objectives import (
    JSD,
    KD,
    LSIQ,
    BellmanDistill,
    SoftTD,
    SparseKD,
    Views,
)
from world import inside_rows, live, make_batch, make_trainer, random_view

SHARE = 0.25


def loss_and_gradient(objective: Any, batch: Batch, steps: Tensor | None) -> list[Tensor]:
    """Summed over the steps, with the log-normaliser at some of them; None: at all."""
    logits, _ = random_view(batch)
    view = SetScores(
        DenseStepScores(logits), batch.sets, batch.action, normalised=steps, share=SHARE
    )
    loss = objective.loss(Views(view), batch).loss.sum()
    return [loss.detach(), *torch.autograd.grad(loss, logits)]


@pytest.mark.parametrize(
    "objective",
    [KD(), BellmanDistill(), SoftTD(normaliser="vocabulary"), LSIQ(absorbing=False), SparseKD()],
    ids=lambda objective: objective.name,
)
def test_the_mean_over_the_draws_is_the_exact_loss_and_gradient(objective: Any):
    """A share of 1/4 has four draws, of a quarter of the offsets each."""
    assert objective.linear_in_normaliser
    source = live(CaptureConfig(captured_top_p=0.6, max_set_size=None, tail_samples=5))
    batch = make_batch(source=source, set_top_p=None)
    place, count = torch.arange(len(batch.action)), len(batch.action)
    found = []
    for draw in range(4):
        offset = torch.full((count,), (draw + 0.5) / 4, dtype=torch.float64)
        steps = evenly_spread(place, offset, share=SHARE).nonzero().squeeze(1)
        assert abs(len(steps) - count / 4) < 1
        found.append(loss_and_gradient(objective, batch, steps))
    exact = loss_and_gradient(objective, batch, None)
    for parts, whole in zip(zip(*found, strict=True), exact, strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-5, atol=1e-5)
        assert all((part - whole).abs().max() > 1e-3 for part in parts)  # each alone is not


def test_only_the_chosen_steps_are_normalised_and_the_leak_is_read_at_them():
    batch = make_batch()
    logits, exact = random_view(batch)
    steps = torch.tensor([0, 3, 7])
    scores = DenseStepScores(logits)
    seen: list[int] = []
    inner = DenseStepScores.reduce

    def reduce(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(len(self))
        return inner(self, *args, **kwargs)

    view = SetScores(scores, batch.sets, batch.action, normalised=steps, share=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DenseStepScores, "reduce", reduce)
        KD().loss(Views(view), batch)
        leak, at = view.leak()
    assert seen == [3]
    assert at.tolist() == [0, 3, 7]
    expected = 1 - (exact.set_value - exact.log_normaliser).exp()
    torch.testing.assert_close(leak, expected[steps].detach())


@pytest.mark.slow
def test_the_draw_is_that_of_the_row_and_the_update_alone():
    rows = list(inside_rows(8))

    def drawn(rows: list[Any], update: int, seed: int = 1) -> list[list[int]]:
        batch = with_normalised_steps(make_batch(rows), SHARE, seed=seed, update=update)
        assert batch.normalised is not None
        marks = torch.zeros(len(batch.action), dtype=torch.bool)
        marks[batch.normalised] = True
        parts = marks.split([len(row.response_ids) for row in rows])
        return [part.nonzero().squeeze(1).tolist() for part in parts]

    together = drawn(rows, 3)
    assert together == [*drawn(rows[:3], 3), *drawn(rows[3:], 3)]
    assert together != drawn(rows, 4) and together != drawn(rows, 3, seed=2)
    counts = torch.zeros(len(rows[0].response_ids))
    for update in range(400):
        counts[drawn(rows[:1], update)[0]] += 1
    assert (counts / 400 - SHARE).abs().max() < 0.07
    assert with_normalised_steps(make_batch(rows), 1.0, seed=0, update=0).normalised is None


@pytest.mark.parametrize(
    "objective",
    [JSD(), KD(support="set-and-tail"), replace(BellmanDistill(), shift="normalised")],
    ids=["jsd", "kd with its tail", "normalised shift"],
)
def test_a_loss_that_an_estimate_would_bias_is_refused(objective: Any, tmp_path: Path):
    with pytest.raises(InvalidValueError, match="normaliser_share: expected 1, or an objective"):
        make_trainer(tmp_path, objective, normaliser_share=0.5)


def test_training_is_the_same_in_micro_batches_and_with_kept_logits(tmp_path: Path):
    logs = []
    for options in ({}, {"gradient_accumulation": 8}, {"kept_logits_mib": 64}):
        trainer = make_trainer(tmp_path, KD(), steps=3, normaliser_share=SHARE, **options)
        trainer.train()
        logs.append([e for e in trainer.state.log_history if "loss" in e])
    for other in logs[1:]:
        for ours, theirs in zip(logs[0], other, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert ours["leak"] == pytest.approx(theirs["leak"], rel=1e-4)
