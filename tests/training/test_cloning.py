from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.core import project
from tdistill.errors import InvalidValueError
from tdistill.evidence.batch import Batch
from tdistill.models.score_forms import DenseStepScores
from tdistill.training.objectives import (
    GKD,
    JSD,
    KD,
    SFT,
    Divergence,
    ReverseKL,
    SeqKD,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
    Views,
)
from world import (
    EVERYTHING,
    PAPER,
    Dense,
    cached,
    inside_rows,
    live,
    make_batch,
    mixed_rows,
    model_view,
    random_view,
    student,
)

SUPPORTS = ("set", "set-and-tail", "projected", "vocabulary")
FAMILY: list[Divergence] = [
    KD(),
    ReverseKL(),
    JSD(),
    JSD(beta=0.1),
    SkewKL(),
    SkewReverseKL(),
    SkewReverseKL(skew=0.4),
    TotalVariation(),
]


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else f"{value.name}-{getattr(value, 'beta', '')}"


every = pytest.mark.parametrize("objective", FAMILY, ids=name_of)
CASES = [(o, s) for o in FAMILY for s in SUPPORTS if s != "projected" or o.name != "reverse_kl"]


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    # The student is float64; the cached teacher is float32.
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def check_same(found: Tensor, expected: Tensor, logits: Tensor, tolerance: float = 2e-6) -> None:
    """In value, and in the gradient of a weighted sum, so that no step stands for another."""
    close(found, expected, tolerance)
    weights = torch.linspace(0.5, 1.5, len(found), dtype=torch.float64)
    one, other = (
        torch.autograd.grad((x * weights).sum(), logits, retain_graph=True)[0]
        for x in (found, expected)
    )
    close(one, other, tolerance)


def teacher_scores(batch: Batch) -> DenseStepScores:
    scores = live().scores(batch.layout)
    return DenseStepScores(scores.rows(0, len(scores)).double())


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.clamp(min=1e-300) / q.clamp(min=1e-300)).log()).sum(1)


def written(objective: Any, p: Tensor, q: Tensor) -> Tensor:
    """A divergence between rows of probabilities."""
    if isinstance(objective, JSD):
        beta = objective.beta
        mixture = beta * p + (1 - beta) * q
        return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)
    if isinstance(objective, SkewReverseKL):
        return kl(q, (1 - objective.skew) * p + objective.skew * q)
    if isinstance(objective, SkewKL):
        return kl(p, objective.skew * p + (1 - objective.skew) * q)
    if isinstance(objective, TotalVariation):
        return 0.5 * (p - q).abs().sum(1)
    return kl(q, p) if isinstance(objective, ReverseKL) else kl(p, q)


def outcomes(support: str, batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of teacher and student over the outcomes of a support, dense."""
    dense, q = Dense.of(batch), logits.softmax(1)
    p = teacher_scores(batch).logits.softmax(1)
    if support == "vocabulary":
        return p, q
    if support == "set":
        return dense.policy, logits.masked_fill(~dense.inside, float("-inf")).softmax(1)
    p = dense.policy
    if support == "set-and-tail":  # as captured, rounded
        p = torch.zeros_like(q).index_put(
            (batch.sets.step, batch.sets.ids), batch.sets.log_probs.double().exp()
        )
    p, q = (
        torch.cat([x * dense.inside, 1 - (x * dense.inside).sum(1)[:, None]], 1) for x in (p, q)
    )
    return p.clamp(min=0.0), q


@pytest.mark.parametrize(("objective", "support"), CASES, ids=name_of)
def test_every_divergence_on_every_support_is_the_dense_formula(
    objective: Any, support: str
) -> None:
    batch = make_batch(set_top_p=0.6)
    logits, view = random_view(batch)
    found = replace(objective, support=support).loss(
        Views(view, teacher=teacher_scores(batch)), batch
    )
    expected = written(objective, *outcomes(support, batch, logits))
    assert (found.loss > 0).sum() > 15  # a set of one member is at 0
    check_same(found.loss, expected, logits, 1e-5)


@every
def test_merging_the_tail_is_a_lower_bound(objective: Any) -> None:
    batch = make_batch()
    _, view = random_view(batch)
    options = {"teacher": teacher_scores(batch)}
    merged, full = (
        replace(objective, support=s).loss(Views(view, **options), batch).loss
        for s in ("set-and-tail", "vocabulary")
    )
    assert (merged <= full + 1e-3).all()  # sets are captured rounded
    assert (merged < 0.95 * full).any()


@every
def test_with_everything_captured_all_supports_agree_up_to_rounding(
    objective: Any, tmp_path: Path
) -> None:
    rows = mixed_rows()
    batch = make_batch(rows, source=cached(tmp_path, rows, EVERYTHING))
    _, view = random_view(batch)
    # Rounding leaves up to 0.001 of mass off a set that holds all of it.
    log_probs = project(batch.sets.log_probs, batch.sets.offsets)
    whole = replace(batch, sets=replace(batch.sets, log_probs=log_probs))
    exact = replace(objective, support="vocabulary")
    expected = exact.loss(Views(view, teacher=teacher_scores(batch)), batch).loss
    for support in SUPPORTS[:-1]:
        if support != "projected" or objective.name != "reverse_kl":
            found = replace(objective, support=support).loss(Views(view), whole).loss
            close(found, expected, 0.005)


def test_cloning_over_the_vocabulary_is_cloning_on_the_set_minus_the_log_of_its_mass() -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    lost = -(logits.softmax(1) * Dense.of(batch).inside).sum(1).log()
    assert (lost > 0.1).any()
    for objective, over in ((KD(), "projected"), (SFT(), "vocabulary"), (SeqKD(), "vocabulary")):
        full, on_set = (
            replace(objective, support=s).loss(Views(view), batch).loss for s in (over, "set")
        )
        check_same(full, on_set + lost, logits)


def test_on_the_set_the_mass_off_it_is_free_and_elsewhere_it_is_not() -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    outside = ~Dense.of(batch).inside
    for objective, support in CASES:
        if support != "vocabulary":
            loss = replace(objective, support=support).loss(Views(view), batch).loss
            off = torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0][outside]
            assert (off.abs().max() == 0.0) == (support == "set")


def test_identity_phi_on_the_set_is_cloning_on_the_set() -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    plain = replace(PAPER, phi="identity", shift="raw", q_min=None)
    check_same(
        SeqKD(support="set").loss(Views(view), batch).loss,
        plain.loss(Views(view), batch).loss,
        logits,
    )
    policy = Dense.of(batch).policy
    entropy = -(policy * policy.clamp(min=1e-300).log()).sum(1)
    expected = replace(plain, linear_term="teacher-expectation").loss(Views(view), batch).loss
    check_same(KD(support="set").loss(Views(view), batch).loss, expected - entropy, logits)


def test_gradients_derived_by_hand() -> None:
    """Forward q - p; reverse q (r - E_q r), the score-function gradient; total variation."""
    batch = make_batch()
    teacher = teacher_scores(batch)
    logits, view = random_view(batch)
    q = logits.detach().softmax(1)
    log_p = teacher.logits.log_softmax(1)
    surprise, sign = q.log() - log_p, 0.5 * (q - log_p.exp()).sign()
    expected = {
        "kd": q - log_p.exp(),
        "reverse_kl": q * (surprise - (q * surprise).sum(1, keepdim=True)),
        "total_variation": q * (sign - (q * sign).sum(1, keepdim=True)),
    }
    for objective in (KD(), ReverseKL(), TotalVariation()):
        exact = replace(objective, support="vocabulary")
        loss = exact.loss(Views(view, teacher=teacher), batch).loss
        close(torch.autograd.grad(loss.sum(), logits)[0], expected[objective.name])


@pytest.mark.parametrize("support", SUPPORTS)
def test_gkd_without_student_rows_is_the_jsd_with_the_kls_as_ends(support: Any) -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    options = {"teacher": teacher_scores(batch)}

    def loss(objective: Any) -> Tensor:
        return replace(objective, support=support).loss(Views(view, **options), batch).loss

    check_same(loss(GKD(student_share=0.0, beta=0.0)), loss(KD()), logits)
    check_same(loss(GKD(beta=0.3)), loss(JSD(beta=0.3)), logits)
    if support != "projected":
        reverse = GKD(beta=1.0, support="set")
        check_same(loss(reverse), loss(ReverseKL()), logits)


@pytest.mark.parametrize(
    "objective",
    [*FAMILY, KD(support="set-and-tail"), ReverseKL(support="vocabulary"), GKD(), JSD(beta=0.9)],
    ids=name_of,
)
def test_thirty_updates_lower_the_loss_and_bring_the_student_closer(objective: Any) -> None:
    model, batch = student(), make_batch(list(inside_rows()))
    scores = live().scores(batch.layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    exact = replace(objective, support="vocabulary")

    def distance() -> float:
        with torch.no_grad():
            view = model_view(model, batch)
            return float(exact.loss(Views(view, teacher=scores), batch).loss.mean())

    losses, start = [], distance()
    for _ in range(30):
        loss = objective.loss(Views(model_view(model, batch), teacher=scores), batch).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert distance() < 0.95 * start


@pytest.mark.parametrize("objective", [SFT(support="set"), SeqKD(support="set"), KD(support="set")])
def test_cloning_on_the_set_learns(objective: Any) -> None:
    model, batch = student(), make_batch(list(inside_rows()))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = objective.loss(Views(model_view(model, batch)), batch).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ReverseKL, {"support": "projected"}, "support: expected set, set-and-tail or vocabulary"),
        (JSD, {"beta": 1.0}, "support: expected set"),
        (SkewReverseKL, {"skew": 0.0}, "support: expected set"),
        (JSD, {"beta": 1.5}, r"beta: expected a value in \[0, 1\], found 1.5"),
        (GKD, {"beta": -0.1}, "beta: expected"),
        (SkewKL, {"skew": 1.0}, r"skew: expected a value in \[0, 1\), found 1.0"),
        (SkewReverseKL, {"skew": -0.1}, "skew: expected"),
    ],
)
def test_values_out_of_range_and_infinite_divergences_are_refused(
    kind: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        kind(**options)


def test_what_each_support_needs() -> None:
    for objective, support in CASES:
        chosen = replace(objective, support=support)
        assert chosen.needs_live_teacher == (support == "vocabulary")
        assert chosen.needs_sets == (support != "vocabulary")
    assert [SeqKD(support=s).needs_sets for s in ("set", "vocabulary")] == [True, False]
    assert (GKD().student_share, GKD().uses_student_rows) == (0.5, True)
    assert not JSD().uses_student_rows


@pytest.mark.parametrize("support", ["set", "vocabulary"])
def test_the_students_own_actions_are_no_labels(support: Any) -> None:
    rows = [replace(row, source="student") if i % 2 else row for i, row in enumerate(mixed_rows())]
    batch = make_batch(rows)
    logits, view = random_view(batch)
    objective = SeqKD(support=support, student_share=0.5)
    found = objective.loss(Views(view), batch).loss
    dense = Dense.of(batch)
    over = logits if support == "vocabulary" else logits.masked_fill(~dense.inside, float("-inf"))
    log_probs = over.log_softmax(1)
    taken = -(log_probs.nan_to_num(neginf=0.0) * dense.action).sum(1)
    expected = -(log_probs.nan_to_num(neginf=0.0) * dense.policy).sum(1)
    assert 0 < int(batch.expert.sum()) < len(found)
    torch.testing.assert_close(found, taken.where(batch.expert, expected), rtol=1e-6, atol=1e-6)
