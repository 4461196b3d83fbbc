"""soft_actor_critic: the actor of the costs to go, on rows of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from costs import as_student, gradient, per_row, views_of
from tdistill.errors import InvalidValueError
from tdistill.evidence.batch import Batch
from tdistill.models.score_forms import DenseStepScores
from tdistill.models.set_scores import SetScores
from tdistill.training.objectives import KD, ReverseKL, SoftActorCritic, Views
from tiny import VOCABULARY
from world import inside_rows, make_batch, mixed_rows

ACTOR = SoftActorCritic(discount=0.5)


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
    assert not result.critic.any()  # targets are 0


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
        cost, teacher = views.critic.scores.logits[t, ids].detach(), log_probs.double().exp()
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
    costs = views.critic.scores.logits.detach()[:1].expand(len(batch.action), -1).clone()
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
