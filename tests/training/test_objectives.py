from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.core import masked_sum
from tdistill.errors import DataError, InvalidValueError
from tdistill.evidence.rows import Row
from tdistill.models.score_forms import DenseStepScores
from tdistill.training.objectives import KD, SFT, BellmanDistill, SeqKD, Views
from world import (
    END,
    EVERYTHING,
    PAPER,
    Dense,
    cached,
    dense_bellman,
    inside_rows,
    live,
    make_batch,
    mixed_rows,
    model_view,
    random_view,
    student,
    teacher,
)

SHIFTS = ("raw", "set-max", "vocabulary-max", "normalised")
# Far from the optimum, so that no term hides behind another.
PLAIN = replace(PAPER, shift="raw", alpha=0.5, q_min=None)


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    # The student is float64; the cached teacher is float32.
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    """Of a weighted sum, so that a gradient moved from one step to another is seen."""
    weights = torch.linspace(0.5, 1.5, len(loss), dtype=loss.dtype)
    return torch.autograd.grad((loss * weights).sum(), logits, retain_graph=True)[0]


def check_same(found: Tensor, expected: Tensor, logits: Tensor) -> None:
    close(found, expected)
    close(gradient(found, logits), gradient(expected, logits))


@pytest.mark.parametrize("gamma", [0.0, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("shift", SHIFTS)
def test_identity_phi_clones_on_the_set_at_every_discount(shift: Any, gamma: float) -> None:
    batch = make_batch(discount=gamma)
    logits, view = random_view(batch)
    found = replace(PLAIN, phi="identity", shift=shift).loss(Views(view), batch).loss
    inside = Dense.of(batch).inside
    projected = logits.masked_fill(~inside, float("-inf")).log_softmax(1)
    check_same(found, -projected.gather(1, batch.action[:, None])[:, 0], logits)


@pytest.mark.parametrize(
    ("shift", "normaliser", "linear", "successor", "q_min"),
    list(
        product(
            SHIFTS,
            ("set", "vocabulary"),
            ("sampled", "teacher-expectation"),
            ("residual", "semi", "target"),
            (None, -2.0),
        )
    ),
)
def test_every_combination_of_choices_is_the_dense_formula(
    shift: Any, normaliser: Any, linear: Any, successor: Any, q_min: float | None
) -> None:
    objective = replace(
        PAPER,
        shift=shift,
        normaliser=normaliser,
        linear_term=linear,
        successor=successor,
        q_min=q_min,
        alpha=0.3,
    )
    batch = make_batch(discount=0.9)
    logits, view = random_view(batch)
    other, target = random_view(batch, seed=9)
    found = objective.loss(Views(view, target=target), batch).loss
    check_same(found, dense_bellman(logits, batch, objective, other), logits)
    if successor == "target":
        assert torch.autograd.grad(found.sum(), other, allow_unused=True)[0] is None


@pytest.mark.parametrize("successor", ["residual", "semi", "target"])
def test_the_gradient_derived_by_hand(successor: Any) -> None:
    """d/dz_t = pi_t - e_t + r_t / 2a e_t - [residual] discount_{t-1} r_{t-1} / 2a pi_t."""
    batch = make_batch(discount=0.9)
    logits, view = random_view(batch)
    other, target = random_view(batch, seed=9)
    loss = replace(PLAIN, successor=successor).loss(Views(view, target=target), batch).loss
    dense = Dense.of(batch)
    pi = logits.detach().masked_fill(~dense.inside, float("-inf")).softmax(1)
    values = dense.on_set((other if successor == "target" else logits).detach())
    reward = (logits.detach() * dense.action).sum(1)
    reward = reward - batch.transitions.discount * dense.following(values, batch)
    known = batch.transitions.can_bootstrap | (successor != "residual")
    force = torch.where(known, reward / (2 * 0.5), 0.0)
    expected = pi - dense.action + force[:, None] * dense.action
    if successor == "residual":
        back = (force * batch.transitions.discount)[:-1].where(batch.row[1:] == batch.row[:-1], 0.0)
        expected[1:] -= back[:, None] * pi[1:]
    close(torch.autograd.grad(loss.sum(), logits)[0], expected)


def test_vocabulary_normaliser_adds_the_mass_off_the_set_and_nothing_else() -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    on_set = PLAIN.loss(Views(view), batch)
    everything = replace(PLAIN, normaliser="vocabulary").loss(Views(view), batch)
    mass = (logits.softmax(1) * Dense.of(batch).inside).sum(1)
    check_same(everything.loss, on_set.loss - mass.log(), logits)
    close(everything.parts["nonlinear"], on_set.parts["nonlinear"])


def test_teacher_expectation_is_the_mean_of_the_sampled_term_over_the_teacher() -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    policy = Dense.of(batch).policy
    sampled = torch.zeros(len(batch.action), dtype=torch.float64)
    for token in range(policy.shape[1]):
        other = replace(batch, action=torch.full_like(batch.action, token))
        _, anywhere = random_view(other)
        sampled += policy[:, token] * PLAIN.loss(Views(anywhere), other).parts["linear"].detach()
    found = replace(PLAIN, linear_term="teacher-expectation").loss(Views(view), batch)
    close(found.parts["linear"], sampled)
    close(found.parts["nonlinear"], PLAIN.loss(Views(view), batch).parts["nonlinear"])
    assert logits.grad is None


def test_shifts_move_only_the_nonlinear_term() -> None:
    batch = make_batch()
    _, view = random_view(batch)
    of = {shift: replace(PLAIN, shift=shift).loss(Views(view), batch).parts for shift in SHIFTS}
    for shift in SHIFTS[1:]:
        close(of[shift]["linear"], of["raw"]["linear"])
        assert (of[shift]["nonlinear"] - of["raw"]["nonlinear"]).abs().max() > 0.1
    close(of["set-max"]["value"].exp().clamp(max=1.0), torch.ones(len(batch.action)))
    assert (of["normalised"]["value"] <= 0).all()


def test_the_clip_bounds_what_is_far_below_the_best_and_stops_its_gradient() -> None:
    batch = make_batch(list(inside_rows(4)))
    logits, _ = random_view(batch)
    far = logits.detach().clone()
    far[0, batch.action[0]] = far[0].max() - 25.0
    far.requires_grad_()
    _, view = random_view(batch)
    view.scores = DenseStepScores(far)
    found = replace(PAPER, alpha=0.5, phi="identity").loss(Views(view), batch)
    unclipped = replace(PAPER, alpha=0.5, phi="identity", q_min=None).loss(Views(view), batch)
    close(unclipped.loss[0] - found.loss[0], torch.tensor(15.0), 1e-3)
    close(unclipped.loss[1:], found.loss[1:], 1e-3)
    assert torch.autograd.grad(found.loss[0], far)[0][0, batch.action[0]] == 0.0


def test_alpha_divides_the_nonlinear_term() -> None:
    batch = make_batch()
    _, view = random_view(batch)
    soft, hard = (replace(PLAIN, alpha=a).loss(Views(view), batch).parts for a in (2.0, 0.1))
    close(soft["nonlinear"] * 20, hard["nonlinear"])
    close(soft["linear"], hard["linear"])
    close(hard["nonlinear"][:1], hard["implied_reward"][:1] ** 2 / 0.4)


def test_end_of_a_finished_row_has_no_future_and_a_cut_row_no_nonlinear_term() -> None:
    steps = {"prompt_ids": (5, 6), "response_ids": inside_rows()[2].response_ids}
    finished, cut = (make_batch([Row(**steps, ended=e)]) for e in (True, False))
    _, view = random_view(finished)
    _, cut_view = random_view(cut)
    whole, part = PLAIN.loss(Views(view), finished), PLAIN.loss(Views(cut_view), cut)
    assert (
        finished.transitions.discount.tolist()[-1] == 0.0
        and cut.transitions.discount.tolist()[-1] > 0.98
    )
    close(whole.parts["implied_reward"][-1], view.action[-1])  # r = Q(s, a): nothing follows
    close(whole.parts["nonlinear"][-1], view.action[-1] ** 2 / 2.0)
    assert part.parts["nonlinear"][-1] == 0.0
    close(part.loss[-1], whole.parts["linear"][-1])
    assert part.loss[-1] > 0.0
    close(part.loss[:-1], whole.loss[:-1])


def test_a_row_takes_nothing_from_the_row_after_it() -> None:
    rows = list(inside_rows(6))
    together = make_batch(rows)
    logits, view = random_view(together)
    found = PLAIN.loss(Views(view), together).loss
    alone = []
    for i, row in enumerate(rows):
        batch = make_batch([row])
        _, one = random_view(batch)
        one.scores = DenseStepScores(logits[together.row == i])
        alone.append(PLAIN.loss(Views(one), batch).loss)
    close(found, torch.cat(alone))


def test_out_of_set_actions_are_inserted_dropped_or_refused() -> None:
    inserted, dropped = (make_batch(out_of_set=o) for o in ("insert", "drop"))
    outside = inserted.out_of_set
    assert int(outside.sum()) >= 3
    assert outside.equal(dropped.out_of_set)
    for batch, expected in ((inserted, True), (dropped, False)):
        member = Dense.of(batch).inside.gather(1, batch.action[:, None])[:, 0]
        assert member[~outside].all()
        assert (member[outside] == expected).all()
    assert inserted.trained.all()
    assert dropped.trained.equal(~outside)
    whole, links = inserted.transitions, dropped.transitions
    assert links.discount.equal(whole.discount)
    before = torch.cat([outside[1:], outside[:1]]) & whole.has_successor
    assert links.has_successor.equal(whole.has_successor & ~outside & ~before)
    assert links.can_bootstrap.equal(whole.can_bootstrap & ~outside & ~before)
    logits, view = random_view(inserted)
    assert PLAIN.loss(Views(view), inserted).parts["linear"].min() > 0.0  # a real log-probability
    logits, view = random_view(dropped)
    loss = replace(PLAIN, phi="identity").loss(Views(view), dropped).loss
    total = masked_sum(loss, dropped.trained)
    assert total.weight == len(loss) - outside.sum()
    assert (torch.autograd.grad(total.total, logits)[0][outside] == 0.0).all()
    with pytest.raises(DataError, match="insert or drop"):
        make_batch(out_of_set="refuse")
    assert make_batch(list(inside_rows()), out_of_set="refuse").trained.all()


def test_sft_and_seqkd_are_the_cross_entropy_of_transformers() -> None:
    model, rows = student(), mixed_rows()
    for objective in (SFT(), SeqKD()):
        batch = make_batch(rows)
        found = objective.loss(Views(model_view(model, batch)), batch).loss
        for i, row in enumerate(rows):
            ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
            labels = ids.clone()
            labels[0, : len(row.prompt_ids)] = -100
            expected = model(input_ids=ids, labels=labels).loss
            close(found[batch.row == i].mean(), expected, 1e-5)
    assert END in [row.response_ids[-1] for row in rows]  # also where the padding id ends a row
    assert (SFT.rows, SeqKD.rows) == ("references", "teacher")


def dense_teacher(batch: Any) -> Tensor:
    lm = teacher()
    with torch.no_grad():
        return model_view(lm.model, batch).scores.rows(0, len(batch.action)).double().log_softmax(1)


def test_live_kd_is_the_forward_kl_over_the_whole_vocabulary() -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    wanted = dense_teacher(batch)
    found = (
        KD(support="vocabulary").loss(Views(view, teacher=live().scores(batch.layout)), batch).loss
    )
    expected = (wanted.exp() * (wanted - logits.log_softmax(1))).sum(1)
    close(found, expected, 1e-5)
    close(gradient(found, logits), gradient(expected, logits), 1e-5)
    assert KD(support="vocabulary").needs_live_teacher
    assert not KD().needs_live_teacher


def test_cached_kd_is_the_forward_kl_from_the_projected_teacher(tmp_path: Path) -> None:
    rows = mixed_rows()
    batch = make_batch(rows, source=cached(tmp_path, rows), set_top_p=0.6)
    logits, view = random_view(batch)
    policy = Dense.of(batch).policy
    terms = torch.where(policy > 0, policy * (policy.log() - logits.log_softmax(1)), 0.0)
    check_same(KD().loss(Views(view), batch).loss.double(), terms.sum(1), logits)


def test_cached_kd_of_the_whole_vocabulary_is_live_kd_up_to_rounding(tmp_path: Path) -> None:
    rows = mixed_rows()
    batch = make_batch(rows, source=cached(tmp_path, rows, EVERYTHING))
    _, view = random_view(batch)
    exact = (
        KD(support="vocabulary").loss(Views(view, teacher=live().scores(batch.layout)), batch).loss
    )
    found = KD().loss(Views(view), batch).loss
    close(found, exact, 0.004)
    assert (found - exact).abs().max() > 0.0  # it was the rounded one


def forward_kl(model: Any, batch: Any) -> float:
    wanted = dense_teacher(batch)
    with torch.no_grad():
        found = model_view(model, batch).scores.rows(0, len(batch.action)).log_softmax(1)
    return float((wanted.exp() * (wanted - found)).sum(1).mean())


@pytest.mark.parametrize(
    ("objective", "closer"),
    [
        (SFT(), False),
        (SeqKD(), True),
        (KD(), True),
        (KD(support="vocabulary"), True),
        (PAPER, False),
        (BellmanDistill(), True),
        (replace(PAPER, shift="raw", alpha=10.0, normaliser="vocabulary"), True),
        (replace(PAPER, shift="raw", alpha=10.0, linear_term="teacher-expectation"), True),
        (replace(PAPER, shift="raw", alpha=10.0, successor="semi"), True),
    ],
    ids=lambda value: str(value)[:60],
)
def test_thirty_updates_lower_the_loss_and_bring_the_student_closer(
    objective: Any, closer: bool
) -> None:
    model, batch = student(), make_batch(list(inside_rows()))
    scores = live().scores(batch.layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses, start = [], forward_kl(model, batch)
    for _ in range(30):
        loss = objective.loss(Views(model_view(model, batch), teacher=scores), batch).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    if closer:
        assert forward_kl(model, batch) < 0.95 * start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"set_top_p": 0.0}, r"set_top_p: expected a mass in \(0, 1\], found 0.0"),
        ({"set_top_p": 1.2}, "set_top_p"),
        ({"discount": 1.1}, r"discount: expected a value in \[0, 1\], found 1.1"),
        ({"discount": -0.1}, "discount"),
        ({"lm_weight": -1.0}, "lm_weight: expected at least 0, found -1"),
        ({"alpha": 0.0}, "alpha: expected above 0"),
        ({"target_decay": 1.0}, "target_decay: expected"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        replace(PAPER, **changes)


def test_what_each_objective_needs() -> None:
    assert [o.needs_sets for o in (SFT(), SeqKD(), KD(), PLAIN)] == [False, False, True, True]
    assert PLAIN.target_network is None
    assert replace(PLAIN, successor="target", target_decay=0.5).target_network == 0.5
    assert (PAPER.set_top_p, PAPER.discount) == (0.8, 0.99)
