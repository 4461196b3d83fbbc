"""The objectives with a critic of the cost to go: value_tilted_kd and soft_actor_critic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.core import project, segment_sum
from tdistill.errors import InvalidValueError
from tdistill.evidence.batch import Batch
from tdistill.evidence.rows import Row
from tdistill.models.scores import DenseStepScores
from tdistill.models.set_scores import SetScores
from tdistill.training.objectives import KD, ReverseKL, SoftActorCritic, ValueTiltedKD, Views
from tiny import VOCABULARY
from world import inside_rows, make_batch, mixed_rows, random_view

TILTED = ValueTiltedKD(centre="none", discount=0.5)
ACTOR = SoftActorCritic(discount=0.5)


def as_student(rows: Any, behaviour: float = -1.0) -> list[Row]:
    return [
        replace(row, source="student", behaviour=(behaviour,) * len(row.response_ids))
        for row in rows
    ]


def values(batch: Batch, *, seed: int = 5) -> SetScores:
    """A critic that wants a gradient: random costs to go, none negative."""
    generator = torch.Generator().manual_seed(seed)
    table = 2 * torch.rand(len(batch.action), VOCABULARY, generator=generator, dtype=torch.float64)
    return SetScores(DenseStepScores(table.requires_grad_()), batch.sets, batch.action)


def views_of(batch: Batch, **more: Any) -> tuple[Tensor, Views]:
    logits, student = random_view(batch)
    critic = more.pop("critic", None) or values(batch)
    frozen = SetScores(DenseStepScores(critic.scores.logits.detach()), batch.sets, batch.action)
    more.setdefault("price", torch.zeros(VOCABULARY, dtype=torch.float64).requires_grad_())
    return logits, Views(student, critic=critic, averaged_critic=frozen, **more)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    return found


def per_row(batch: Batch) -> list[slice]:
    lengths = batch.row.bincount().tolist()
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


# value_tilted_kd.


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
        cost = views.critic.scores.logits[t, ids]  # type: ignore[union-attr]
        target = (log_probs.double().exp() * (-0.7 * cost).exp()).detach()
        target = target / target.sum()
        expected = (target * (target.log() - log_student[t, ids])).sum()
        torch.testing.assert_close(found[t], expected, rtol=1e-6, atol=1e-7)
    assert (
        torch.autograd.grad(found.sum(), views.critic.scores.logits, allow_unused=True)[0] is None
    )  # type: ignore[union-attr]


def test_the_mass_on_the_set_stays() -> None:
    batch = make_batch()
    logits, views = views_of(batch)
    found = replace(TILTED, support="set-and-tail").loss(views, batch).loss
    log_student = logits.log_softmax(-1)
    for t in range(len(batch.sets)):
        ids, log_probs = batch.sets.row(t)
        mass = log_probs.double().exp().sum()
        cost = views.critic.scores.logits[t, ids].detach()  # type: ignore[union-attr]
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
    to_go, sets = views.critic.on_set.detach(), batch.sets  # type: ignore[union-attr]
    log_policy = project(sets.log_probs.double(), sets.offsets)
    if bootstrap == "tilted":
        log_policy = project(log_policy - to_go, sets.offsets)
    cost = KD().loss(views, batch).loss.detach()
    value = cost + segment_sum(log_policy.exp() * to_go, sets.offsets)
    action = views.critic.action.detach()  # type: ignore[union-attr]
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
        error = result.critic[steps]  # type: ignore[index]
        assert ended or error[-1] == 0.0
        expected = (torch.tensor(counted) - action[steps][: len(counted)]) ** 2
        torch.testing.assert_close(error[: len(counted)], expected, rtol=1e-5, atol=1e-6)


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
    _, views = views_of(batch)
    objective = replace(TILTED, centre="frequency", beta=2.0)
    price = views.price
    assert price is not None
    teacher = project(batch.sets.log_probs.double(), batch.sets.offsets)
    costs = views.critic.on_set.detach()  # type: ignore[union-attr]

    def tilted() -> Tensor:
        return project(teacher - price.detach()[batch.sets.ids] - 2.0 * costs, batch.sets.offsets)

    def slope() -> Tensor:
        loss = objective.loss(views, batch).critic
        assert loss is not None
        return torch.autograd.grad(loss.sum(), price)[0]

    # The gradient is what is missing: of a token that is too rare the price falls.
    wanted = frequencies(teacher, batch)
    torch.testing.assert_close(slope(), wanted - frequencies(tilted(), batch), rtol=1e-5, atol=1e-6)
    assert (wanted - frequencies(tilted(), batch)).abs().max() > 0.1
    for _ in range(2000):
        down = slope()
        with torch.no_grad():
            price -= 0.5 * down
    torch.testing.assert_close(frequencies(tilted(), batch), wanted, rtol=0, atol=1e-3)


def test_strength_rises_as_asked() -> None:
    views = Views(None, update=0, updates=11)  # type: ignore[arg-type]
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
        cost: replace(TILTED, cost=cost).loss(views, batch).parts["cost"]  # type: ignore[arg-type]
        for cost in ("forward-kl", "reverse-kl", "own-loss")
    }
    torch.testing.assert_close(found["forward-kl"], KD().loss(views, batch).loss)
    torch.testing.assert_close(found["reverse-kl"], ReverseKL().loss(views, batch).loss)
    own = -logits.log_softmax(-1).gather(1, batch.action[:, None]).squeeze(1)
    torch.testing.assert_close(found["own-loss"], own)


def test_what_cannot_be_tilted_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="support: expected set, set-and-tail or projected"):
        ValueTiltedKD(support="vocabulary")
    with pytest.raises(InvalidValueError, match="beta: expected at least 0"):
        ValueTiltedKD(beta=-1.0)


# soft_actor_critic.


def actor_batch() -> Batch:
    return make_batch([*as_student(inside_rows(4)), *mixed_rows()[-3:]])


def test_without_a_future_it_is_the_reverse_kl() -> None:
    batch = actor_batch()
    nothing = torch.zeros(len(batch.action), VOCABULARY, dtype=torch.float64)
    critic = SetScores(DenseStepScores(nothing.requires_grad_()), batch.sets, batch.action)
    logits, views = views_of(batch, critic=critic)
    result = replace(ACTOR, discount=0.0).loss(views, make_batch_like(batch, 0.0))
    plain = ReverseKL().loss(views, batch).loss
    torch.testing.assert_close(result.loss, plain)
    torch.testing.assert_close(gradient(result.loss, logits), gradient(plain, logits))
    assert not result.critic.any()  # type: ignore[union-attr]  # targets are 0


def make_batch_like(batch: Batch, discount: float) -> Batch:
    links = replace(batch.transitions, discount=discount * batch.transitions.discount)
    return replace(batch, transitions=links)


@pytest.mark.parametrize("off_set", ["mean", "worst"])
def test_all_actions_pay_their_divergence_and_what_follows(off_set: Any) -> None:
    batch = actor_batch()
    logits, views = views_of(batch)
    found = replace(ACTOR, off_set=off_set).loss(views, batch).loss
    policy = logits.softmax(-1)
    for t in range(len(batch.sets)):
        ids, log_probs = batch.sets.row(t)
        cost, teacher = views.critic.scores.logits[t, ids].detach(), log_probs.double().exp()  # type: ignore[union-attr]
        mine, rest = policy[t, ids], 1 - policy[t, ids].sum()
        on_set = (mine / mine.sum()).detach()
        after = (on_set * cost).sum() if off_set == "mean" else cost.max()
        expected = (mine * ((mine / teacher).log() + cost)).sum()
        expected = expected + rest * ((rest / (1 - teacher.sum())).log() + after)
        torch.testing.assert_close(found[t], expected, rtol=1e-5, atol=1e-6)


def test_the_mean_over_sampled_actions_is_the_exact_gradient() -> None:
    """At one state: every action in turn, weighted by its probability."""
    start = inside_rows(1)[0]
    ids, _ = make_batch([start]).sets.row(0)
    rows = [replace(start, response_ids=(int(i), 0), ended=True) for i in ids]
    batch = make_batch(as_student(rows), set_top_p=0.8)
    firsts = torch.tensor([steps.start for steps in per_row(batch)])
    logits, views = views_of(batch)
    one = logits[:1].detach().clone()
    one[0, [i for i in range(VOCABULARY) if i not in ids.tolist()]] = -50.0  # all mass on the set
    wide = one.expand(len(batch.action), -1).clone().requires_grad_()
    costs = views.critic.scores.logits.detach()[:1].expand(len(batch.action), -1).clone()  # type: ignore[union-attr]
    student = SetScores(DenseStepScores(wide), batch.sets, batch.action)
    critic = SetScores(DenseStepScores(costs.requires_grad_()), batch.sets, batch.action)
    behaviour = wide.detach().log_softmax(-1).gather(1, batch.action[:, None]).squeeze(1)
    batch = replace(batch, behaviour_log_prob=behaviour)
    one_unit = {"squared_advantage": torch.ones((), dtype=torch.float64)}
    views = Views(student, critic=critic, averaged_critic=critic, means=one_unit)
    exact = SoftActorCritic(critic=ACTOR.critic).loss(views, batch).loss[firsts]
    exact_gradient = gradient(exact[0], wide)[firsts[0]]
    sampled = SoftActorCritic(actor="sampled-action", clip_ratio=None)
    loss, _ = sampled._taken(views, batch, exact_all(batch, exact, firsts), critic.action.detach())
    weights = behaviour[firsts].exp()
    assert weights.sum() == pytest.approx(1.0, abs=1e-6)
    found = sum(w * gradient(loss[t], wide)[t] for w, t in zip(weights, firsts, strict=True))
    torch.testing.assert_close(found, exact_gradient, rtol=1e-5, atol=1e-6)
    assert exact_gradient.abs().max() > 0.01


def exact_all(batch: Batch, exact: Tensor, firsts: Tensor) -> Tensor:
    baseline = torch.zeros(len(batch.action), dtype=torch.float64)
    return baseline.index_copy(0, firsts, exact.detach())


def test_the_teachers_rows_are_cloned_where_asked() -> None:
    batch = actor_batch()
    _, views = views_of(batch)
    cloned = replace(ACTOR, expert_rows="clone").loss(views, batch).loss
    acted = ACTOR.loss(views, batch).loss
    torch.testing.assert_close(cloned[batch.expert], KD().loss(views, batch).loss[batch.expert])
    torch.testing.assert_close(cloned[~batch.expert], acted[~batch.expert])
    assert not torch.equal(cloned, acted)


def test_a_trace_is_cut_where_the_student_would_not_go() -> None:
    likely, unlikely = (actor_batch_of(behaviour) for behaviour in (-30.0, 30.0))
    for batch, cut in ((likely, False), (unlikely, True)):
        _, views = views_of(batch)
        mine = ~batch.expert
        full = replace(ACTOR, returns="monte-carlo").loss(views, batch).parts["critic_return"]
        one = replace(ACTOR, returns="one-step").loss(views, batch).parts["critic_return"]
        assert torch.allclose(full[mine], one[mine], atol=1e-6) == cut


def actor_batch_of(behaviour: float) -> Batch:
    return make_batch(as_student(inside_rows(8), behaviour))


def test_the_critic_may_learn_alone_first() -> None:
    batch = actor_batch()
    _, views = views_of(batch)
    late = replace(ACTOR, critic_updates=3)
    first = late.loss(replace(views, update=2), batch)
    torch.testing.assert_close(first.loss, ReverseKL().loss(views, batch).loss)
    assert first.critic is not None and first.critic.any()
    after = late.loss(replace(views, update=3), batch)
    torch.testing.assert_close(after.loss, ACTOR.loss(views, batch).loss)


def test_sampled_advantages_have_unit_size_by_earlier_updates() -> None:
    batch = actor_batch()
    logits, views = views_of(batch)
    objective = replace(ACTOR, actor="sampled-action", clip_ratio=None)
    mine = ~batch.expert
    first = objective.loss(views, batch)
    assert not first.loss[mine].any()  # the size is not known yet
    total, count = first.sums["squared_advantage"]
    assert count == mine.sum() and total > 0.0
    slopes = []
    for size in (1.0, 4.0):
        known = {"squared_advantage": torch.tensor(size, dtype=torch.float64)}
        loss = objective.loss(replace(views, means=known), batch).loss[mine]
        slopes.append(gradient(loss, logits))
    torch.testing.assert_close(slopes[0], 2 * slopes[1])
    assert slopes[0].any()
    with pytest.raises(InvalidValueError, match="out_of_set: expected insert or refuse"):
        replace(objective, out_of_set="drop")


def test_an_actor_without_rows_of_its_own_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="student_share: expected above 0"):
        SoftActorCritic(student_share=0.0)
