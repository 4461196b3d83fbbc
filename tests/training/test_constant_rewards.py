from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.errors import InvalidValueError
from tdistill.evidence.batch import Counts
from tdistill.training.objectives import LSIQ, SQIL, Views
from world import Dense, inside_rows, learn, make_batch, own_rows, random_view

SET = SQIL(normaliser="set", discount=0.9, expert_reward=2.0, student_weight=0.5)
LEAST = LSIQ(normaliser="set", discount=0.9, penalty=0.5)


def mixed() -> Any:
    """Expert rows and the student's own; ended and cut ones of both."""
    return make_batch([*inside_rows()[:5], *own_rows()[:5]], discount=0.9)


def halves(batch: Any) -> Tensor:
    """Half of the weight to each source, in a mean over all steps."""
    expert = batch.expert.double()
    own = 1 - expert
    return len(expert) / 2 * (expert / expert.sum() + own / own.sum())


def check_same(found: Tensor, expected: Tensor, logits: Tensor) -> None:
    weights = torch.linspace(0.5, 1.5, len(found), dtype=found.dtype)
    slopes = [
        torch.autograd.grad((weights * x).sum(), logits, retain_graph=True)[0]
        for x in (found, expected)
    ]
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=2e-6, atol=2e-6)


def dense(logits: Tensor, batch: Any, successor: str, bound: float | None = None) -> Any:
    """Q of the actions, V, and y = discount V(s'), over [T, V]."""
    d = Dense.of(batch)
    value = d.on_set(logits)
    later = d.following(value if successor == "residual" else value.detach(), batch)
    later = later if bound is None else later.clamp(-bound, bound)
    return (logits * d.action).sum(1), value, batch.transitions.discount * later


@pytest.mark.parametrize("successor", ["residual", "semi"])
def test_sqil_is_the_dense_formula(successor: Any) -> None:
    batch = mixed()
    assert 0 < int(batch.expert.sum()) < len(batch.expert)
    logits, view = random_view(batch)
    found = replace(SET, successor=successor).loss(Views(view), batch).loss
    q_a, _, y = dense(logits, batch, successor)
    expected = torch.where(batch.expert, (q_a - 2.0 - y) ** 2, 0.5 * (q_a - y) ** 2)
    check_same(found, halves(batch) * expected, logits)
    assert not batch.transitions.can_bootstrap.all()  # V = 0 behind a cut


@pytest.mark.parametrize("absorbing", [True, False])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("successor", ["residual", "semi"])
def test_ls_iq_is_the_dense_formula(successor: Any, *, clip: bool, absorbing: bool) -> None:
    batch = mixed()
    logits, view = random_view(batch, scale=15.0)  # values beyond what rewards can reach
    objective = replace(LEAST, successor=successor, clip_targets=clip, absorbing=absorbing)
    far = 1 / (0.5 * (1 - 0.9))
    q_a, value, y = dense(logits, batch, successor, far if clip else None)
    size = torch.where(~batch.transitions.has_successor & absorbing, far, 2.0)  # ended or cut
    expected = torch.where(batch.expert, (q_a - size - y) ** 2, (value + size - y) ** 2)
    check_same(objective.loss(Views(view), batch).loss, halves(batch) * expected, logits)
    assert objective.largest_value == pytest.approx(far)


def test_a_fixed_expert_target_is_the_largest_value() -> None:
    batch = mixed()
    logits, view = random_view(batch)
    found = replace(LEAST, expert_target="fixed").loss(Views(view), batch).loss
    q_a, _, _ = dense(logits, batch, "semi")
    kept = batch.expert
    check_same(found[kept], halves(batch)[kept] * (q_a[kept] - 20.0) ** 2, logits)
    other = LEAST.loss(Views(view), batch).loss
    torch.testing.assert_close(found[~batch.expert], other[~batch.expert])


@pytest.mark.parametrize("objective", [SET, LEAST], ids=lambda o: o.name)
def test_vocabulary_normaliser_adds_the_students_mass_off_the_set(objective: Any) -> None:
    batch = mixed()
    logits, view = random_view(batch)
    found = replace(objective, normaliser="vocabulary").loss(Views(view), batch).loss
    mass = (logits.softmax(1) * Dense.of(batch).inside).sum(1)
    check_same(found, objective.loss(Views(view), batch).loss - mass.log(), logits)


@pytest.mark.parametrize("objective", [SET, LEAST], ids=lambda o: o.name)
def test_the_balance_is_between_sources_or_between_steps(objective: Any) -> None:
    """By sources the two means count alike; by steps the source with more steps counts more."""
    batch = make_batch([*inside_rows()[:8], *own_rows()[:2]], discount=0.9)
    _, view = random_view(batch)
    expert = batch.expert
    assert expert.sum() > 2 * (~expert).sum()
    by_steps = replace(objective, balance="steps").loss(Views(view), batch).loss
    by_sources = objective.loss(Views(view), batch).loss
    means = by_steps[expert].mean(), by_steps[~expert].mean()
    torch.testing.assert_close(by_sources.mean(), (means[0] + means[1]) / 2)
    more = Counts(torch.tensor(400), torch.tensor(100), torch.tensor(0))  # of a whole update
    in_part = objective.loss(Views(view, counts=more), batch).loss
    torch.testing.assert_close(in_part, by_steps * torch.where(expert, 2.0, 2 / 3))


@pytest.mark.parametrize("objective", [SQIL(), LSIQ(absorbing=False)], ids=lambda o: o.name)
def test_thirty_updates_lower_the_loss(objective: Any) -> None:
    losses, _ = learn(objective, make_batch([*inside_rows(), *own_rows()]))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("kind", [SQIL, LSIQ])
def test_they_need_the_students_rows(kind: Any) -> None:
    assert kind.needs_student_rows and kind().uses_student_rows
    with pytest.raises(InvalidValueError, match="student_share: expected above 0"):
        kind(student_share=0.0)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (SQIL, {"expert_reward": 0.0}, "expert_reward: expected above 0"),
        (SQIL, {"student_weight": -1.0}, "student_weight: expected at least 0"),
        (SQIL, {"out_of_set": "drop"}, "out_of_set: expected insert or refuse"),
        (LSIQ, {"penalty": 0.0}, "penalty: expected above 0"),
        (LSIQ, {"discount": 1.0}, "discount: expected below 1"),
    ],
)
def test_values_out_of_range_are_refused(kind: Any, changes: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        kind(**changes)
