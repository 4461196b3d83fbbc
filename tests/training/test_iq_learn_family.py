from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from tdistill.errors import InvalidValueError
from tdistill.evidence.batch import Batch
from tdistill.evidence.rows import ROW_SOURCES
from tdistill.training.objectives import BellmanDistill, IQLearn, Views
from world import (
    EVERYTHING,
    PAPER,
    Dense,
    dense_q,
    inside_rows,
    live,
    make_batch,
    model_view,
    random_view,
    student,
    teacher,
)

SHIFTS = ("raw", "set-max", "vocabulary-max", "normalised")
PHIS = ("identity", "chi-square", "hellinger", "kl", "jensen-shannon", "total-variation")
SECOND = ("expert", "online", "initial")
ONLINE: dict[str, Any] = {"second_term": "online", "student_share": 0.5}
PLAIN = IQLearn(normaliser="set", alpha=2.0, discount=0.9, student_share=0.5)


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    # The student is float64; the teacher's evidence is float32.
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    """Of a weighted sum, so that a gradient moved from one step to another is seen."""
    weights = torch.linspace(0.5, 1.5, len(loss), dtype=loss.dtype)
    return torch.autograd.grad((loss * weights).sum(), logits, retain_graph=True)[0]


def mixed_batch(discount: float = 0.9, **options: Any) -> Batch:
    """Every third row is the student's own; one student row is cut, one ended."""
    batch = make_batch(discount=discount, **options)
    source = torch.zeros_like(batch.source)
    source[torch.tensor([1, 3])] = ROW_SOURCES.index("student")
    return replace(batch, source=source)


def plain_phi(name: str, x: Tensor, alpha: float, steep: float = 10.0) -> Tensor:
    """Each phi written out from the table, by where()."""
    u = x / alpha
    if name == "identity":
        return x
    if name == "chi-square":
        return alpha * (u - u**2 / 4)
    if name == "total-variation":
        return alpha * (u - (steep - 1) * (relu(u - 0.5) + relu(-0.5 - u)))
    slope = torch.tensor(steep).double()
    phi, knee = {
        "hellinger": (lambda v: v / (1 + v), slope**-0.5 - 1),
        "kl": (lambda v: 1 - torch.exp(-v), -slope.log()),
        "jensen-shannon": (lambda v: (2 - torch.exp(-v)).log(), ((1 + 1 / slope) / 2).log()),
    }[name]
    safe = torch.where(u > knee, u, torch.ones_like(u))
    return alpha * torch.where(u > knee, phi(safe), phi(knee) + steep * (u - knee))


def dense_loss(logits: Tensor, batch: Batch, choices: IQLearn) -> Tensor:
    """(4.2) one step at a time over [T, V]: no cancelled form, loops over rows."""
    dense = Dense.of(batch)
    q = dense_q(logits, dense.inside, choices.shift, choices.q_min)
    value, q_a = dense.on_set(q), (q * dense.action).sum(1)
    label = q_a if choices.linear_term == "sampled" else (dense.policy * q).sum(1)
    expected = (dense.policy * q).sum(1)
    after = batch.transitions.discount * dense.following(value, batch)
    reward, centre = q_a - after, torch.zeros_like(q_a)
    if choices.centre == "teacher":
        own = torch.full_like(logits, float("-inf")).detach()
        for t in range(len(own)):
            ids, log_probs = batch.sets.row(t)
            own[t, ids] = log_probs.double()
        constant = {
            "raw": -batch.teacher_log_normaliser.double(),
            "normalised": torch.zeros(len(own), dtype=torch.float64),
        }.get(choices.shift, own.max(1).values)
        own_value = (own - constant[:, None]).logsumexp(1)
        taken = batch.teacher_action_log_prob.double() - constant
        centre = taken - batch.transitions.discount * dense.following(own_value, batch)
    phi = centre + plain_phi(choices.phi, reward - centre, choices.alpha)
    first, losses = value, []
    if choices.normaliser == "vocabulary":
        first = value - (logits.softmax(1) * dense.inside).sum(1).log()
    expert, row = batch.expert.tolist(), batch.row.tolist()
    for t in range(len(row)):
        known, ours = bool(batch.transitions.can_bootstrap[t]), expert[t]
        # phi(r) as written, with its linear part -r on the label; all of it at a cut is -label.
        scored = phi[t] - q_a[t] + label[t] if known else label[t]
        steps = [k for k in range(len(row)) if row[k] == row[t]]
        if choices.second_term == "online":
            flow, weight = first[t] - after[t], len(row) / sum(expert)
            if ours:  # phi of the action, V - V' with r on the label; a cut clones
                at_known = flow + (q_a[t] - label[t]) - weight * phi[t]
                losses.append(at_known if known else first[t] - label[t])
            else:  # phi pulls this reward, too; nothing is known behind a cut
                losses.append(flow + reward[t] - phi[t] if known else 0 * flow)
        elif not ours:
            losses.append(first[t] - expected[t])
        elif choices.second_term == "expert":
            losses.append(-scored + first[t] - (after[t] if known else 0.0))
        else:
            powers = [choices.discount ** (k - steps[0]) for k in steps]
            weight = len(steps) * choices.discount ** (t - steps[0]) / sum(powers)
            losses.append(weight * (-scored + (first[t] if t == steps[0] else 0.0)))
    return torch.stack(losses)


@pytest.mark.parametrize(("phi", "second", "centre"), [*product(PHIS, SECOND, ("zero", "teacher"))])
def test_value_and_gradient_are_those_of_the_dense_formula(
    phi: Any, second: Any, centre: Any
) -> None:
    batch = mixed_batch()
    assert 0 < batch.expert.sum() < len(batch.expert)
    assert not batch.transitions.can_bootstrap[~batch.expert].all()
    assert not batch.transitions.can_bootstrap[batch.expert].all()
    if (phi, second) == ("identity", "online"):
        pytest.skip("refused")
    for i, (normaliser, linear) in enumerate(
        product(("set", "vocabulary"), ("sampled", "teacher-expectation"))
    ):
        choices: dict[str, Any] = {"normaliser": normaliser, "linear_term": linear}
        choices |= {"phi": phi, "second_term": second, "centre": centre, "shift": SHIFTS[i]}
        objective = replace(PLAIN, **choices)
        logits, view = random_view(batch)
        found, expected = (
            objective.loss(Views(view), batch).loss,
            dense_loss(logits, batch, objective),
        )
        close(found, expected, 1e-5)
        close(gradient(found, logits), gradient(expected, logits), 1e-5)


@pytest.mark.parametrize("linear", ["sampled", "teacher-expectation"])
@pytest.mark.parametrize("phi", PHIS[1:])
def test_online_without_student_rows_is_the_expert_form(phi: Any, linear: Any) -> None:
    batch = make_batch(discount=0.9)
    logits, view = random_view(batch)
    objective = replace(PLAIN, phi=phi, linear_term=linear)
    expert = objective.loss(Views(view), batch).loss
    online = replace(objective, second_term="online").loss(Views(view), batch).loss
    close(online, expert)
    close(gradient(online, logits), gradient(expert, logits))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("phi", PHIS)
def test_the_initial_form_is_the_expert_form_over_the_discounted_occupancy(
    phi: Any, gamma: float
) -> None:
    """Row by row, in value and gradient; at discount 1 over the plain mean."""
    batch = make_batch(discount=gamma)
    objective = replace(PLAIN, phi=phi, discount=gamma)
    logits, view = random_view(batch)
    expert = objective.loss(Views(view), batch).loss
    initial = replace(objective, second_term="initial").loss(Views(view), batch).loss
    for row in range(len(batch.source)):
        mine = batch.row == row
        weights = gamma ** torch.arange(int(mine.sum()), dtype=torch.float64)
        weighted = (weights * expert[mine]).sum() / weights.sum()
        close(initial[mine].mean(), weighted, 1e-5)
        same = [
            torch.autograd.grad(x, logits, retain_graph=True)[0]
            for x in (initial[mine].mean(), weighted)
        ]
        close(*same, 1e-5)


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("shift", SHIFTS)
def test_no_form_can_be_lowered_by_moving_every_q_alike(shift: Any, second: Any) -> None:
    """With the identity phi all are cloning; a constant added to all logits changes no mean."""
    batch = make_batch(discount=0.9)
    phi = "chi-square" if second == "online" else "identity"
    objective = replace(PLAIN, phi=phi, alpha=1e9, second_term=second, shift=shift)
    logits, view = random_view(batch)
    _, moved = random_view(batch)
    moved.scores = type(view.scores)(logits + 7.0)
    before, after = (objective.loss(Views(v), batch).loss for v in (view, moved))
    for row in range(len(batch.source)):
        mine = batch.row == row
        close(after[mine].mean(), before[mine].mean(), 1e-5)


@pytest.mark.parametrize("q_min", [None, -2.0])
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_student_equal_to_the_teacher_has_its_reward(shift: Any, q_min: float | None) -> None:
    batch = make_batch(discount=0.9)
    objective = replace(PAPER, shift=shift, q_min=q_min)
    with torch.no_grad():
        found = objective.loss(Views(model_view(teacher().model, batch)), batch)
        expected = objective.teacher_reward(batch)
    assert expected.abs().max() > 0.1
    close(found.parts["implied_reward"], expected, 0.01)  # the evidence is rounded


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("phi", PHIS[1:])
def test_centred_on_the_teacher_a_student_equal_to_it_feels_no_phi(phi: Any, second: Any) -> None:
    """Loss and gradient are then those of the identity phi; around zero they are not."""
    batch = make_batch(discount=0.9, source=live(EVERYTHING))
    objective = replace(PLAIN, phi=phi, second_term=second)
    logits = torch.zeros(len(batch.action), 64, dtype=torch.float64)
    log_normaliser = batch.teacher_log_normaliser[batch.sets.step]
    logits[batch.sets.step, batch.sets.ids] = (batch.sets.log_probs + log_normaliser).double()
    logits.requires_grad_()
    _, view = random_view(batch)
    view.scores = type(view.scores)(logits)
    linear = replace(
        objective, phi="identity", second_term="expert" if second == "online" else second
    )
    linear = linear.loss(Views(view), batch).loss  # the batch has expert rows only
    centred = replace(objective, centre="teacher").loss(Views(view), batch)
    close(centred.parts["nonlinear"], torch.zeros(len(logits)), 1e-5)
    close(gradient(centred.loss, logits), gradient(linear, logits), 1e-4)
    around_zero = gradient(objective.loss(Views(view), batch).loss, logits)
    assert (around_zero - gradient(linear, logits)).abs().max() > 0.05


def test_on_its_own_rows_the_student_learns_from_the_teacher_and_not_from_its_actions() -> None:
    batch = mixed_batch()
    own = ~batch.expert
    replaced = batch.sets.ids[batch.sets.offsets[:-1]].where(own, batch.action)
    other = replace(batch, action=replaced)
    assert (other.action[own] != batch.action[own]).any()
    (_, view), (_, elsewhere) = random_view(batch), random_view(other)
    for second, linear in product(("expert", "initial"), ("sampled", "teacher-expectation")):
        objective = replace(PLAIN, second_term=second, linear_term=linear)
        found = objective.loss(Views(view), batch)
        close(objective.loss(Views(elsewhere), other).loss, found.loss)
        assert (found.parts["nonlinear"][own] == 0.0).all()
        assert (found.loss[own] != 0.0).any()


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("linear", ["sampled", "teacher-expectation"])
@pytest.mark.parametrize("phi", PHIS[1:])
def test_online_no_step_falls_below_its_bound(phi: Any, linear: Any, scale: float) -> None:
    """Whatever the logits, at states that one policy alone visits, at ends and cuts."""
    batch = mixed_batch()
    objective = replace(PLAIN, phi=phi, linear_term=linear, second_term="online", max_slope=2.0)
    grid = torch.linspace(-40.0, 40.0, 80_001, dtype=torch.float64)
    weight = len(batch.expert) / int(batch.expert.sum())
    on_expert = (grid - weight * plain_phi(phi, grid, 2.0, 2.0)).min()
    on_own = (2 * grid - plain_phi(phi, grid, 2.0, 2.0)).min()
    bound = torch.where(batch.expert, on_expert, on_own)
    for seed in range(5):
        _, view = random_view(batch, seed=seed, scale=scale)
        loss = objective.loss(Views(view), batch).loss
        assert (loss >= bound.clamp(max=0.0) - 1e-6 * (1 + loss.detach().abs())).all()


@pytest.mark.parametrize("second", ["expert", "initial"])
@pytest.mark.parametrize("linear", ["sampled", "teacher-expectation"])
def test_rows_with_dropped_steps_telescope_in_their_pieces(second: Any, linear: Any) -> None:
    """With the identity phi all is cloning, of weights gamma^t from the start of each piece."""
    batch = make_batch(discount=0.9, out_of_set="drop")
    inside = batch.trained
    assert not inside.all() and not inside[~batch.transitions.has_successor].all()
    objective = replace(PLAIN, phi="identity", second_term=second, linear_term=linear)
    _, view = random_view(batch)
    loss = objective.loss(Views(view), batch).loss
    assert loss[inside].isfinite().all()
    cloning = replace(objective, second_term="expert").loss(Views(view), batch).parts["linear"]
    ends = (~batch.transitions.has_successor).nonzero().squeeze(1).tolist()
    for begin, end in zip([0, *(e + 1 for e in ends)], ends, strict=False):
        piece = slice(begin, end + 1)
        if inside[piece].all():
            steps = torch.arange(end + 1 - begin)
            weights = 0.9**steps if second == "initial" else torch.ones(len(steps))
            expected = (weights * cloning[piece]).sum() / weights.sum()
            close(loss[piece].mean(), expected, 1e-5)
        else:
            assert begin == end  # a dropped step is a piece of its own


@pytest.mark.parametrize("normaliser", ["set", "vocabulary"])
def test_the_cloning_term_is_bounded_where_q_min_binds(normaliser: Any) -> None:
    """Lowering all logits of a state cannot lower it: V is of the Q that was clipped."""
    batch = make_batch()
    objective = replace(PLAIN, normaliser=normaliser, q_min=-3.0, phi="identity")
    logits, view = random_view(batch)
    mass = (logits.softmax(1) * Dense.of(batch).inside).sum(1).log()
    for shift in (0.0, -5.0, -500.0):
        view.scores = type(view.scores)(logits + shift)
        view = type(view)(view.scores, batch.sets, batch.action, chunk_size=3)
        found = objective.loss(Views(view), batch)
        assert (found.parts["linear"] >= -1e-6).all()
        leak = objective.leak_cost(view)
        close(leak, 0 * mass if normaliser == "set" else -mass)


def test_bellman_distill_is_iq_learn_with_its_own_defaults() -> None:
    batch = make_batch()
    _, view = random_view(batch)
    same = IQLearn(alpha=10.0, linear_term="teacher-expectation")
    found, expected = (o.loss(Views(view), batch).loss for o in (BellmanDistill(), same))
    assert found.equal(expected)
    assert (IQLearn().alpha, IQLearn().linear_term) == (0.5, "sampled")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_slope": 1.0}, "max_slope: expected above 1"),
        ({"second_term": "online"}, "student_share: expected above 0 under second_term: online"),
        ({"second_term": "initial", "successor": "semi"}, "successor: expected residual"),
        ({**ONLINE, "successor": "semi"}, "successor: expected residual under second_term: online"),
        ({**ONLINE, "successor": "target"}, "successor: expected residual under second_term: onl"),
        ({**ONLINE, "phi": "identity"}, "phi: expected another under second_term: online"),
        ({**ONLINE, "phi": "kl", "max_slope": 1.9}, "max_slope: expected at least 2 under second"),
        ({"second_term": "initial", "successor": "target"}, "successor: expected residual"),
    ],
)
def test_choices_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        IQLearn(**changes)


@pytest.mark.parametrize("centre", ["zero", "teacher"])
@pytest.mark.parametrize("phi", PHIS)
def test_thirty_updates_lower_the_loss_and_bring_the_student_closer(phi: Any, centre: Any) -> None:
    model, batch = student(), make_batch(list(inside_rows()))
    # Weak enough that cloning leads: phi's own optimum is another (see the docstring).
    objective = IQLearn(phi=phi, centre=centre, alpha=30.0, linear_term="teacher-expectation")
    clone, losses = replace(objective, phi="identity"), []
    start = float(clone.loss(Views(model_view(model, batch)), batch).loss.detach().mean())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(30):
        loss = objective.loss(Views(model_view(model, batch)), batch).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    end = float(clone.loss(Views(model_view(model, batch)), batch).loss.detach().mean())
    assert losses[-1] < 0.9 * losses[0]
    assert end < 0.9 * start
