"""value_tilted_kd: cloning of a teacher that is tilted by costs to go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from costs import as_student, gradient, per_row, views_of
from tdistill.core import project, segment_sum
from tdistill.errors import InvalidValueError
from tdistill.evidence.batch import Batch
from tdistill.models.score_forms import DenseStepScores
from tdistill.models.set_scores import SetScores
from tdistill.tabular import minimise
from tdistill.training.objectives import KD, ReverseKL, ValueTiltedKD, Views
from tiny import VOCABULARY
from world import make_batch, mixed_rows

TILTED = ValueTiltedKD(centre="none", discount=0.5)


@pytest.mark.parametrize("support", ["projected", "set", "set-and-tail"])
@pytest.mark.parametrize("centre", ["none", "token", "frequency"])
def test_without_strength_it_is_kd_in_value_and_gradient(support: Any, centre: Any) -> None:
    batch = make_batch()
    logits, views = views_of(batch)
    plain = KD(support=support).loss(views, batch).loss
    tilted = ValueTiltedKD(support=support, beta=0.0, centre=centre).loss(views, batch).loss
    close = {"rtol": 1e-5, "atol": 1e-6}  # the teacher's evidence is in float32
    torch.testing.assert_close(tilted, plain, **close)
    torch.testing.assert_close(gradient(tilted, logits), gradient(plain, logits), **close)
    other = ValueTiltedKD(support=support, beta=0.5, centre=centre).loss(views, batch).loss
    assert (other - plain).abs().max() > 0.01


def test_it_clones_the_teacher_times_what_each_member_costs() -> None:
    batch = make_batch()
    logits, views = views_of(batch)
    found = replace(TILTED, beta=0.7).loss(views, batch).loss
    log_student = logits.log_softmax(-1)
    for t in range(len(batch.sets)):
        ids, log_probs = batch.sets.row(t)
        cost = views.critic.scores.logits[t, ids]
        target = (log_probs.double().exp() * (-0.7 * cost).exp()).detach()
        target = target / target.sum()
        expected = (target * (target.log() - log_student[t, ids])).sum()
        torch.testing.assert_close(found[t], expected, rtol=1e-6, atol=1e-7)
    assert (
        torch.autograd.grad(found.sum(), views.critic.scores.logits, allow_unused=True)[0] is None
    )


def test_the_mass_on_the_set_stays() -> None:
    batch = make_batch()
    logits, views = views_of(batch)
    found = replace(TILTED, support="set-and-tail").loss(views, batch).loss
    log_student = logits.log_softmax(-1)
    for t in range(len(batch.sets)):
        ids, log_probs = batch.sets.row(t)
        mass = log_probs.double().exp().sum()
        cost = views.critic.scores.logits[t, ids].detach()
        target = mass * (log_probs.double() - cost).softmax(0)
        rest = (1 - mass) * ((1 - mass).log() - torch.log1p(-log_student[t, ids].exp().sum()))
        expected = (target * (target.log() - log_student[t, ids])).sum() + rest
        torch.testing.assert_close(found[t], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bootstrap", ["teacher", "tilted"])
@pytest.mark.parametrize("returns", ["one-step", "k-step", "lambda", "monte-carlo"])
def test_targets_are_the_costs_of_what_follows(bootstrap: Any, returns: Any) -> None:
    batch = make_batch(discount=0.5)
    _, views = views_of(batch)
    objective = replace(TILTED, bootstrap=bootstrap, returns=returns, horizon=2, trace=0.6)
    result = objective.loss(views, batch)
    to_go, sets = views.critic.on_set.detach(), batch.sets
    log_policy = project(sets.log_probs.double(), sets.offsets)
    if bootstrap == "tilted":
        log_policy = project(log_policy - to_go, sets.offsets)
    cost = KD().loss(views, batch).loss.detach()
    value = cost + segment_sum(log_policy.exp() * to_go, sets.offsets)
    action = views.critic.action.detach()
    trace = {"lambda": 0.6, "monte-carlo": 1.0}.get(returns)
    ratio = (log_policy - project(sets.log_probs.double(), sets.offsets)).exp().clamp(max=1.0)
    taken = sets.ids == batch.action[sets.step]
    ratio = segment_sum(ratio * taken, sets.offsets)
    for row, steps in enumerate(per_row(batch)):
        ended = mixed_rows()[row].ended
        wanted: list[float] = [0.0] * (steps.stop - steps.start)
        for place in reversed(range(len(wanted) - 1)):  # 0 after the end token; none after a cut
            t = steps.start + place + 1
            last = place + 2 == len(wanted)
            if trace is not None:
                known = ended or not last
                more = trace * float(ratio[t]) * (wanted[place + 1] - float(action[t])) * known
                wanted[place] = 0.5 * (float(value[t]) + more)
            elif returns == "one-step":
                wanted[place] = 0.5 * float(value[t])
            else:
                two = 0.0 if last else 0.5 * float(value[t + 1])
                cut = last and not ended
                wanted[place] = 0.5 * (float(value[t]) if cut else float(cost[t]) + two)
        target = result.parts["critic_return"][steps].tolist()
        counted = wanted if ended else wanted[:-1]
        assert target[: len(counted)] == pytest.approx(counted, abs=1e-5)
        error = result.critic[steps]
        assert ended or error[-1] == 0.0
        expected = (torch.tensor(counted) - action[steps][: len(counted)]) ** 2
        torch.testing.assert_close(error[: len(counted)], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("returns", ["k-step", "monte-carlo"])
def test_nothing_behind_a_cut_counts_where_so_wanted(returns: Any) -> None:
    """The target is the costs of the row itself, whatever the critic says; else its guess too."""
    batch = make_batch(discount=0.5)
    shape = (len(batch.action), VOCABULARY)
    guess = torch.ones(shape, dtype=torch.float64).requires_grad_()
    critic = SetScores(DenseStepScores(guess), batch.sets, batch.action)
    _, views = views_of(batch, critic=critic)
    plain = replace(TILTED, bootstrap="teacher", returns=returns, horizon=99, discount=0.5)
    alone = replace(plain, at_cuts="nothing")
    cost = KD().loss(views, batch).loss.detach()
    target = alone.loss(views, batch).parts["critic_return"]
    guessed = plain.loss(views, batch).parts["critic_return"]
    assert any(not row.ended for row in mixed_rows())
    for row, steps in zip(mixed_rows(), per_row(batch), strict=True):
        length = steps.stop - steps.start
        behind = [float(c) for c in cost[steps]]
        wanted = [
            sum(0.5 ** (k - t) * behind[k] for k in range(t + 1, length)) for t in range(length)
        ]
        assert target[steps].tolist() == pytest.approx(wanted, abs=1e-6)
        if row.ended:
            assert guessed[steps].tolist() == pytest.approx(wanted, abs=1e-6)
        elif length > 1:
            assert guessed[steps][0] > wanted[0] + 1e-3


def test_the_critic_learns_on_the_rows_to_imitate_alone() -> None:
    rows = [*mixed_rows()[:3], *as_student(mixed_rows()[3:])]
    batch = make_batch(rows)
    _, views = views_of(batch)
    critic = TILTED.loss(views, batch).critic
    assert critic is not None and critic[batch.expert].any()
    assert not critic[~batch.expert].any()


def test_a_student_that_is_the_teacher_costs_nothing_and_nothing_is_tilted() -> None:
    batch = make_batch()
    logits = torch.full((len(batch.action), VOCABULARY), -60.0, dtype=torch.float64)
    sets = batch.sets
    logits[sets.step, sets.ids] = project(sets.log_probs.double(), sets.offsets)
    logits.requires_grad_()
    student = SetScores(DenseStepScores(logits), sets, batch.action)
    nothing = SetScores(
        DenseStepScores(torch.zeros_like(logits).requires_grad_()), sets, batch.action
    )
    price = torch.zeros(VOCABULARY, dtype=torch.float64).requires_grad_()
    views = Views(student, critic=nothing, averaged_critic=nothing, price=price)
    result = ValueTiltedKD().loss(views, batch)
    assert result.critic is not None
    (slope,) = torch.autograd.grad(result.critic.sum(), price, retain_graph=True)
    assert slope.abs().max() < 1e-6
    assert result.parts["critic_return"].abs().max() < 1e-6
    assert result.critic is not None and result.critic.max() < 1e-6
    assert gradient(result.loss, logits).abs().max() < 1e-6


def token_costs(batch: Batch) -> SetScores:
    """A critic to which the token alone says what it costs."""
    own = torch.linspace(0.0, 3.0, VOCABULARY, dtype=torch.float64).expand(len(batch.action), -1)
    return SetScores(DenseStepScores(own.clone()), batch.sets, batch.action)


def test_a_tokens_mean_price_in_earlier_updates_is_left_out() -> None:
    batch = make_batch()
    _, views = views_of(batch, critic=token_costs(batch))
    objective = replace(TILTED, centre="token", beta=0.7)
    first = objective.loss(views, batch)
    plain = replace(TILTED, beta=0.7).loss(views, batch)
    torch.testing.assert_close(first.loss, plain.loss)  # nothing is known yet
    total, weight = first.sums["token_price"]
    again = objective.loss(
        replace(views, means={"token_price": total / weight.clamp(min=1e-30)}), batch
    )
    # Of costs that hang on the token alone next to nothing is left (sets differ in their means).
    assert again.parts["tilt_kl"].mean() < 0.2 * plain.parts["tilt_kl"].mean()
    assert plain.parts["tilt_kl"].max() > 0.1


def frequencies(log_policy: Tensor, batch: Batch) -> Tensor:
    return torch.zeros(VOCABULARY).double().index_add(0, batch.sets.ids, log_policy.exp())


def test_prices_at_their_least_keep_the_teachers_token_frequencies() -> None:
    batch = make_batch()
    logits, views = views_of(batch)
    student = SetScores(DenseStepScores(logits.detach()), batch.sets, batch.action)
    views = replace(views, student=student, critic=views.averaged_critic)  # the price alone learns
    # With the teacher's bootstrap the price moves no target of the critic.
    objective = replace(TILTED, centre="frequency", beta=2.0, bootstrap="teacher")
    teacher = project(batch.sets.log_probs.double(), batch.sets.offsets)
    costs = views.critic.on_set.detach()

    def tilted(price: Tensor) -> Tensor:
        return project(teacher - price[batch.sets.ids] - 2.0 * costs, batch.sets.offsets)

    def loss(price: Tensor) -> Tensor:
        return objective.loss(replace(views, price=price), batch).critic.sum()

    # The gradient is what is missing: of a token that is too rare the price falls.
    wanted, start = frequencies(teacher, batch), views.price
    missing = wanted - frequencies(tilted(start.detach()), batch)
    assert missing.abs().max() > 0.1
    (slope,) = torch.autograd.grad(loss(start), start)
    torch.testing.assert_close(slope, missing, rtol=1e-5, atol=1e-6)
    price = minimise(loss, start.detach())
    torch.testing.assert_close(frequencies(tilted(price), batch), wanted, rtol=0, atol=1e-6)


def test_strength_rises_as_asked() -> None:
    views = Views(None, update=0, updates=11)
    objective = ValueTiltedKD(beta=2.0, beta_start=1.0, critic_updates=4)
    found = [objective.strength(replace(views, update=u)) for u in (0, 3, 4, 7, 10)]
    assert found == pytest.approx([0.0, 0.0, 1.0, 1.5, 2.0])
    assert ValueTiltedKD(beta=2.0).strength(views) == 2.0


def test_shuffled_returns_are_those_of_other_steps() -> None:
    batch = make_batch()
    _, views = views_of(batch)
    torch.manual_seed(0)
    straight = TILTED.loss(views, batch).parts["critic_return"]
    shuffled = replace(TILTED, shuffled=True).loss(views, batch).parts["critic_return"]
    known = batch.transitions.can_bootstrap
    assert sorted(straight[known].tolist()) == sorted(shuffled[known].tolist())
    assert not torch.equal(straight[known], shuffled[known])


def test_costs_are_the_divergences_that_they_are_called() -> None:
    batch = make_batch()
    logits, views = views_of(batch)
    found = {
        cost: replace(TILTED, cost=cost).loss(views, batch).parts["cost"]
        for cost in ("forward-kl", "reverse-kl", "own-loss")
    }
    torch.testing.assert_close(found["forward-kl"], KD().loss(views, batch).loss)
    torch.testing.assert_close(found["reverse-kl"], ReverseKL().loss(views, batch).loss)
    own = -logits.log_softmax(-1).gather(1, batch.action[:, None]).squeeze(1)
    torch.testing.assert_close(found["own-loss"], own)


def test_what_cannot_be_tilted_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="support: expected set, set-and-tail or projected"):
        ValueTiltedKD(support="vocabulary")
    with pytest.raises(InvalidValueError, match="out_of_set: expected insert or refuse under"):
        ValueTiltedKD(at_cuts="nothing", out_of_set="drop")
    with pytest.raises(InvalidValueError, match="beta: expected at least 0"):
        ValueTiltedKD(beta=-1.0)
