from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.errors import InvalidValueError
from tdistill.training.objectives import PathConsistency, SoftTD, Views
from world import Dense, inside_rows, learn, make_batch, model_view, random_view, teacher

SET = SoftTD(normaliser="set", discount=0.9)


def check_same(found: Tensor, expected: Tensor, logits: Tensor) -> None:
    """Values, and the gradient of a weighted sum: none can move from one step to another."""
    weights = torch.linspace(0.5, 1.5, len(found), dtype=found.dtype)
    slopes = [
        torch.autograd.grad((weights * x).sum(), logits, retain_graph=True)[0]
        for x in (found, expected)
    ]
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=2e-5, atol=2e-5)


def dense_reward(batch: Any, *, whole: bool) -> Tensor:
    """r_T over [T, V], from the teacher's own logits."""
    with torch.no_grad():
        z = model_view(teacher().model, batch).scores.rows(0, len(batch.action)).double()
    dense = Dense.of(batch)
    value = z.logsumexp(1) if whole else dense.on_set(z)
    return (z * dense.action).sum(1) - batch.transitions.discount * dense.following(value, batch)


def dense_error(logits: Tensor, batch: Any, reward: Tensor, held: Tensor | None = None) -> Tensor:
    """The one-step error over [T, V]; ``held`` gives V(s')."""
    dense = Dense.of(batch)
    later = dense.following(dense.on_set(logits if held is None else held), batch)
    return reward + batch.transitions.discount * later - (logits * dense.action).sum(1)


@pytest.mark.parametrize("value", ["set", "vocabulary"])
@pytest.mark.parametrize("successor", ["residual", "semi", "target"])
def test_one_step_is_the_dense_formula(successor: Any, value: Any) -> None:
    batch = make_batch(discount=0.9)
    logits, view = random_view(batch)
    other, target = random_view(batch, seed=9)
    objective = replace(SET, successor=successor, teacher_value=value)
    found = objective.loss(Views(view, target=target), batch).loss
    held = {"residual": None, "semi": logits.detach(), "target": other.detach()}[successor]
    # The evidence is stored rounded: what counts is a reward from the teacher's own logits.
    reward = dense_reward(batch, whole=value == "vocabulary")
    assert (objective.reward(batch) - reward).abs().max() < 0.02
    cut = ~batch.transitions.can_bootstrap
    assert cut.any()  # there the target is the teacher's Q itself
    torch.testing.assert_close(objective.reward(batch)[cut], objective.teacher_q(batch)[1][cut])
    check_same(found, dense_error(logits, batch, objective.reward(batch), held) ** 2, logits)


def test_the_rewards_over_set_and_vocabulary_are_two() -> None:
    batch = make_batch(discount=0.9)
    gap = SET.reward(batch) - replace(SET, teacher_value="vocabulary").reward(batch)
    assert gap.min() > -1e-5 and gap.max() > 0.01  # V over the vocabulary is the larger


def test_vocabulary_normaliser_adds_the_students_mass_off_the_set() -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    found = replace(SET, normaliser="vocabulary").loss(Views(view), batch)
    mass = (logits.softmax(1) * Dense.of(batch).inside).sum(1)
    check_same(found.loss, SET.loss(Views(view), batch).loss - mass.log(), logits)


def test_the_returns_that_must_coincide_do() -> None:
    batch = make_batch()
    logits, view = random_view(batch)

    def loss(**changes: Any) -> Tensor:
        return replace(SET, **changes).loss(Views(view), batch).loss

    one = loss()
    check_same(loss(returns="k-step", horizon=1), one, logits)
    check_same(loss(returns="lambda", trace=0.0), one, logits)
    longest = loss(returns="k-step", horizon=100)
    check_same(loss(returns="lambda", trace=1.0), longest, logits)
    assert (longest - one).abs().max() > 0.1


@pytest.mark.parametrize("successor", ["semi", "target"])
def test_no_gradient_passes_through_a_return_that_is_held(successor: Any) -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    other, target = random_view(batch, seed=9)
    objective = replace(SET, returns="k-step", horizon=3, successor=successor)
    result = objective.loss(Views(view, target=target), batch)
    slope = torch.autograd.grad(result.loss.sum(), logits)[0]
    expected = -2 * result.parts["td_error"].detach()[:, None] * Dense.of(batch).action
    torch.testing.assert_close(slope, expected)
    assert not other.requires_grad or other.grad is None


@pytest.mark.parametrize("returns", ["one-step", "k-step", "lambda"])
def test_nothing_of_a_dropped_step_enters_the_returns_before_it(returns: Any) -> None:
    """Neither its action nor the value of its state: no loss trains either."""
    rows = list(inside_rows())
    batch = make_batch(rows, discount=0.9, set_top_p=0.4, out_of_set="drop")
    dropped, same_row = ~batch.trained, batch.row.diff(append=batch.row[-1:] + 1) == 0
    before = dropped.roll(-1) & same_row & batch.trained
    assert before.sum() > 3
    logits, view = random_view(batch)
    loss = replace(SET, returns=returns, horizon=3).loss(Views(view), batch)
    slope = torch.autograd.grad(loss.loss[batch.trained].sum(), logits)[0]
    assert (slope[dropped] == 0.0).all()
    target = loss.parts["td_error"][before] + view.action[before]
    torch.testing.assert_close(target, SET.teacher_q(batch)[1][before].double())


def test_path_consistency_is_the_residual_of_the_paper() -> None:
    """-V(s_t) + disc^d V(s_t+d) + sum disc^j (r - log pi), windows end with their rows."""
    batch = make_batch(discount=0.9)
    logits, view = random_view(batch)
    objective = PathConsistency(normaliser="set", discount=0.9, horizon=3)
    dense, reward = Dense.of(batch), objective.reward(batch)
    value = dense.on_set(logits)
    log_pi = (logits * dense.action).sum(1) - value
    expected = []
    for t in range(len(reward)):
        residual, weight, j = -value[t], 1.0, t
        while j < t + 3 and weight:
            residual = residual + weight * (reward[j] - log_pi[j])
            weight = weight * float(
                batch.transitions.discount[j] * batch.transitions.can_bootstrap[j]
            )
            j += 1
        expected.append(residual + weight * value[j] if weight else residual)
    found = objective.loss(Views(view), batch).loss
    check_same(found, torch.stack(expected) ** 2, logits)
    k_step = replace(SET, returns="k-step", horizon=3)
    check_same(found, k_step.loss(Views(view), batch).loss, logits)


@pytest.mark.parametrize(
    "objective",
    [
        SoftTD(),
        SoftTD(returns="k-step", horizon=3),
        SoftTD(returns="lambda", successor="semi"),
        PathConsistency(),
    ],
    ids=lambda o: f"{o.name} {o.returns}",
)
def test_thirty_updates_bring_the_student_closer(objective: SoftTD) -> None:
    losses, distances = learn(objective, make_batch(list(inside_rows())))
    assert losses[-1] < 0.7 * losses[0]
    assert distances[-1] < 0.95 * distances[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"horizon": 0}, "horizon: expected at least 1"), ({"trace": 1.5}, "trace: expected")],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        SoftTD(**changes)
    with pytest.raises(InvalidValueError, match="successor: expected residual"):
        PathConsistency(successor="semi")
