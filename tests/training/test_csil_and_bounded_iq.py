from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.errors import InvalidValueError
from tdistill.training.objectives import CSIL, BoundedIQ, Views
from world import PAPER, Dense, inside_rows, learn, make_batch, own_rows, random_view

COHERENT = CSIL(normaliser="set", discount=0.9, cloning_weight=0.5, reward_scale=1.5)


def check_same(found: Tensor, expected: Tensor, logits: Tensor) -> None:
    weights = torch.linspace(0.5, 1.5, len(found), dtype=found.dtype)
    slopes = [
        torch.autograd.grad((weights * x).sum(), logits, retain_graph=True)[0]
        for x in (found, expected)
    ]
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=2e-5, atol=2e-5)


def test_csil_is_the_dense_formula() -> None:
    batch = make_batch(discount=0.9)
    logits, view = random_view(batch)
    dense = Dense.of(batch)
    log_teacher = dense.policy.where(dense.inside, 1.0).log()
    value = dense.on_set(logits)
    later = batch.transitions.discount * dense.following(value, batch)
    error = (dense.action * (1.5 * log_teacher - logits)).sum(1) + later
    log_policy = logits - value[:, None]
    cloning = (dense.policy * (log_teacher - log_policy)).sum(1)
    assert not batch.transitions.can_bootstrap.all()  # V = 0 behind a cut, too
    expected = error**2 + 0.5 * cloning
    check_same(COHERENT.loss(Views(view), batch).loss, expected, logits)
    whole = replace(COHERENT, normaliser="vocabulary").loss(Views(view), batch).loss
    mass = (logits.softmax(1) * dense.inside).sum(1)
    check_same(whole, expected - mass.log(), logits)


@pytest.mark.parametrize("returns", ["one-step", "k-step", "lambda"])
def test_the_projected_teacher_has_no_loss(returns: Any) -> None:
    batch = make_batch()
    dense = Dense.of(batch)
    _, view = random_view(batch)
    view.scores.logits.data.copy_(dense.policy.clamp(min=1e-300).log())
    loss = CSIL(returns=returns, horizon=3).loss(Views(view), batch).loss
    assert loss.abs().max() < 1e-5
    wrong = CSIL(returns=returns, reward_scale=1.5).loss(Views(view), batch).loss
    assert wrong.max() > 0.1


def test_a_band_of_no_width_is_chi_square() -> None:
    batch = make_batch(discount=0.9)
    logits, view = random_view(batch)
    shared: dict[str, Any] = {"normaliser": "set", "discount": 0.9}
    band = BoundedIQ(lowest_reward=0.0, highest_reward=0.0, penalty=0.5, **shared)
    chi_square = replace(PAPER, shift="raw", q_min=None, alpha=0.5, successor="semi", **shared)
    found = band.loss(Views(view), batch).loss
    check_same(found, chi_square.loss(Views(view), batch).loss, logits)


def test_the_band_is_one_sided_on_each_side_and_holds_every_row() -> None:
    rows = [*inside_rows()[:5], *own_rows()[:5]]
    batch = make_batch(rows, discount=0.9)
    logits, view = random_view(batch)
    objective = BoundedIQ(
        normaliser="set", discount=0.9, lowest_reward=-1.0, highest_reward=0.5, penalty=3.0
    )
    dense = Dense.of(batch)
    q_a, value = (logits * dense.action).sum(1), dense.on_set(logits)
    reward = q_a - batch.transitions.discount * dense.following(value.detach(), batch)
    inside = reward.detach().clamp(-1.0, 0.5)
    excess = (reward - inside) ** 2  # a cut row ends where it was cut: V(s') is held, not trained
    assert (reward < -1.0).any() and (reward > 0.5).any() and (inside == reward).any()
    expected = torch.where(batch.expert, value - q_a, 0.0) + 3.0 * excess
    check_same(objective.loss(Views(view), batch).loss, expected, logits)


@pytest.mark.parametrize("objective", [CSIL(), CSIL(successor="semi"), BoundedIQ()])
def test_thirty_updates_bring_the_student_closer(objective: Any) -> None:
    losses, distances = learn(objective, make_batch(list(inside_rows())))
    assert losses[-1] < 0.7 * losses[0]
    assert distances[-1] < 0.95 * distances[0]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (CSIL, {"reward_scale": 0.0}, "reward_scale: expected above 0"),
        (CSIL, {"cloning_weight": -1.0}, "cloning_weight: expected at least 0"),
        (BoundedIQ, {"penalty": -1.0}, "penalty: expected at least 0"),
        (BoundedIQ, {"lowest_reward": 2.0}, "lowest_reward: expected at most highest_reward"),
    ],
)
def test_values_out_of_range_are_refused(kind: Any, changes: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        kind(**changes)
