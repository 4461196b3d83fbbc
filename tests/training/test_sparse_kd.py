"""Sparse unbiased cloning and chosen sets in training: dense references, refusals, a short run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.core import truncate_by_gain
from tdistill.errors import InvalidValueError
from tdistill.evaluation.config import EvaluationConfig
from tdistill.evidence.batch import Batch
from tdistill.recipe import Recipe, StudentConfig, TeacherConfig
from tdistill.teacher.adaptive import choose_top_p
from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.training.objectives import KD, SFT, BellmanDistill, SparseKD, Views
from tdistill.training.tolerated_gap import resolve_gap
from tdistill.training.train import train_student
from tiny import VOCABULARY, tiny_lm
from world import EVERYTHING, cached, live, make_batch, make_trainer, mixed_rows, random_view

TAILS = CaptureConfig(captured_top_p=0.6, max_set_size=None, tail_samples=5)


def sparse_target(batch: Batch) -> Tensor:
    """The cached distribution as dense weights [T, V]: head as captured, tail by counts."""
    known = live(TAILS).evidence(mixed_rows())
    weights = torch.zeros(len(batch.action), VOCABULARY, dtype=torch.float64)
    assert known.tail is not None
    for t in range(len(weights)):
        ids, log_probs = known.sets.row(t)
        weights[t, ids] = log_probs.double().exp()
        part = slice(int(known.tail.offsets[t]), int(known.tail.offsets[t + 1]))
        drawn = known.tail.counts[part].double() / 5
        weights[t, known.tail.ids[part]] = (1 - weights[t].sum()) * drawn
    return weights


@pytest.mark.parametrize("out_of_set", ["insert", "drop"])
def test_the_loss_is_that_of_the_dense_weights(out_of_set: Any):
    batch = make_batch(source=live(TAILS), out_of_set=out_of_set)
    assert batch.out_of_set.any()
    logits, view = random_view(batch)
    found = SparseKD().loss(Views(view), batch).loss
    target = sparse_target(batch)
    whole = live(EVERYTHING).evidence(mixed_rows()).sets
    dense = torch.zeros_like(target)
    dense[whole.step, whole.ids] = whole.log_probs.double()
    expected = (target * (dense - logits.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient, logits.softmax(-1) - target, atol=2e-6, rtol=1e-5)


def test_inserted_actions_are_told_from_members():
    for choice in ("insert", "drop"):
        batch = make_batch(source=live(TAILS), out_of_set=choice)
        inserted = batch.inserted
        assert int(inserted.sum()) == (int(batch.out_of_set.sum()) if choice == "insert" else 0)
        captured = live(TAILS).evidence(mixed_rows()).sets
        assert torch.equal(batch.sets.ids[~inserted], captured.ids)


def test_batches_without_tails_are_refused():
    for options in ({"source": live()}, {"source": live(TAILS), "set_top_p": 0.5}):
        batch = make_batch(**options)
        assert batch.tail is None
        with pytest.raises(InvalidValueError, match=r"rollouts\.capture\.tail_samples above 0"):
            SparseKD().loss(Views(random_view(batch)[1]), batch)


def test_a_recipe_without_tails_is_refused():
    parts: dict[str, Any] = {
        "teacher": TeacherConfig("x"),
        "student": StudentConfig(layers=1),
        "objectives": {"sparse": SparseKD(), "kd": KD()},
        "distilled": "kd",
    }
    with pytest.raises(
        InvalidValueError, match=r"objectives\.sparse: sparse_kd needs sampled tail"
    ):
        Recipe(**parts)
    Recipe(**parts, rollouts=RolloutConfig(capture=replace(TAILS, captured_top_p=0.9)))


@pytest.mark.parametrize("name", ["set_top_p", "min_gain", "tolerated_gap"])
def test_sets_that_tails_do_not_fit_are_refused(name: str):
    wrong: dict[str, Any] = {name: 0.5}
    with pytest.raises(InvalidValueError, match=f"{name}: expected null: sampled tails fit"):
        SparseKD(**wrong)


def test_it_learns_from_a_cache(tmp_path: Path):
    rows = mixed_rows()
    source = cached(tmp_path / "cache", rows, TAILS)
    settings: dict[str, Any] = {"rows": rows, "batch_size": 6, "learning_rate": 1e-2, "steps": 15}
    trainer = make_trainer(tmp_path / "run", SparseKD(), source=source, **settings)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


def test_sets_are_cut_by_their_gain():
    whole, batch = make_batch(), make_batch(min_gain=0.2, out_of_set="drop")
    expected = truncate_by_gain(live().evidence(mixed_rows()).sets, 0.2)
    assert torch.equal(batch.sets.ids, expected.ids)
    assert len(batch.sets.ids) < len(whole.sets.ids)
    both = make_batch(min_gain=0.2, set_top_p=0.5, out_of_set="drop")
    assert len(both.sets.ids) <= len(batch.sets.ids)


@pytest.mark.parametrize("rule", ["global", "per-state"])
def test_a_tolerated_gap_becomes_sets(rule: Any, tmp_path: Path):
    cache = cached(tmp_path, mixed_rows()).cache
    objective = BellmanDistill(tolerated_gap=1.2, gap_rule=rule, discount=0.9)
    resolved, chosen = resolve_gap(objective, lambda: cache)
    assert chosen == choose_top_p(cache, 1.2, discount=0.9, rule=rule)
    assert resolved.tolerated_gap is None
    assert (resolved.set_top_p, resolved.min_gain) == (chosen.set_top_p, chosen.min_gain)
    assert (resolved.set_top_p is None) == (rule == "per-state")
    with pytest.raises(InvalidValueError, match=r"found a tolerated_gap of 1\.2"):
        train(objective, tmp_path)


def train(objective: Any, folder: Path) -> None:
    trainer: dict[str, Any] = {"checkpoints": folder / "run", "vocabulary_size": VOCABULARY}
    settings = make_trainer(folder / "args", KD()).config
    train_student(tiny_lm("llama"), objective, mixed_rows(), settings, source=live(), **trainer)


def test_without_a_gap_the_cache_is_not_opened():
    def fail() -> Any:
        raise AssertionError

    objective = BellmanDistill()
    assert resolve_gap(objective, fail) == (objective, None)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: BellmanDistill(tolerated_gap=0.0), "tolerated_gap: expected above 0 nats"),
        (lambda: BellmanDistill(tolerated_gap=1.0, discount=0.0), "discount: expected above 0"),
        (lambda: BellmanDistill(tolerated_gap=1.0, min_gain=0.1), "expected one of the two"),
        (lambda: BellmanDistill(min_gain=-1.0), "min_gain: expected at least 0 nats"),
        (lambda: SFT(tolerated_gap=1.0), "tolerated_gap: expected null: this has no sets"),
    ],
)
def test_impossible_choices_of_sets_are_refused(make: Any, text: str):
    with pytest.raises(InvalidValueError, match=text):
        make()


def test_a_recipe_may_state_a_gap_above_what_set_top_p_would_need():
    Recipe(
        TeacherConfig("x"),
        StudentConfig(layers=1),
        objectives={"bd": BellmanDistill(tolerated_gap=2.0)},
        distilled="bd",
        rollouts=RolloutConfig(capture=CaptureConfig(0.7, None)),  # below the default set_top_p
        evaluation=EvaluationConfig(set_top_p=0.5),
    )
