"""Forward KL, KL on the set and leak against full distributions, one row at a time."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from judging import ROWS, dense_log_probs, examples, held_out, intervals, student, teacher
from torch import Tensor

from tdistill.evaluation.imitation import exposure_bias, imitation
from tdistill.evaluation.intervals import Sample
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import in_passes


def members(target: Tensor, top_p: float) -> list[int]:
    """The smallest set of mass p."""
    order = target.argsort(descending=True, stable=True)
    reached = target[order].exp().cumsum(0) >= top_p
    return order[: int(reached.nonzero()[0]) + 1].tolist()


def dense(lm: LanguageModel, top_p: float) -> dict[str, list[float]]:
    """Sums of every row, written out; an action outside the teacher's set is no member."""
    sums: dict[str, list[float]] = {"forward_kl": [], "set_kl": [], "leak": []}
    for row in ROWS:
        kl = set_kl = leak = 0.0
        targets, policies = dense_log_probs(teacher(), row), dense_log_probs(lm, row)
        for target, policy in zip(targets, policies, strict=True):
            kl += float((target.exp() * (target - policy)).sum())
            chosen = members(target, top_p)
            on_target = target[chosen].log_softmax(0)
            on_policy = policy[chosen].log_softmax(0)
            set_kl += float((on_target.exp() * (on_target - on_policy)).sum())
            leak += 1 - float(policy[chosen].exp().sum())
        for name, value in (("forward_kl", kl), ("set_kl", set_kl), ("leak", leak)):
            sums[name].append(value)
    return sums


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_it_equals_the_dense_computation(batch_size: int):
    found = intervals(imitation(student(), held_out(batch_size=batch_size)))
    steps = sum(len(row.response_ids) for row in ROWS)
    expected = dense(student(), 0.8)
    assert found["forward_kl"].mean == pytest.approx(sum(expected["forward_kl"]) / steps, rel=1e-5)
    assert found["leak"].mean == pytest.approx(sum(expected["leak"]) / steps, rel=1e-4)
    # The set's log-probabilities are kept rounded.
    assert found["set_kl"].mean == pytest.approx(sum(expected["set_kl"]) / steps, rel=2e-3)


def test_hidden_states_are_kept_on_the_host_and_full_logits_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
):
    kept = held_out()
    hidden = [known[1] for known in kept.kept if known is not None]
    assert len(hidden) == len(kept.batches) == 3
    assert {states.device.type for states in hidden} == {"cpu"}
    assert sum(len(states) for states in hidden) == sum(len(row.response_ids) for row in ROWS)
    monkeypatch.setattr("tdistill.evaluation.imitation._kept", lambda scores: None)
    anew = held_out()
    assert anew.kept == [None] * 3
    for number in range(3):
        ours, theirs = (held.teacher_scores(number) for held in (anew, kept))
        assert torch.equal(ours.rows(0, len(ours)), theirs.rows(0, len(theirs)))


def test_rows_are_bounded_by_tokens(monkeypatch: pytest.MonkeyPatch):
    expected = intervals(imitation(student(), held_out(batch_size=5)))
    bounded = partial(in_passes, most_tokens=9)
    monkeypatch.setattr("tdistill.evaluation.imitation.in_passes", bounded)
    monkeypatch.setattr("tdistill.evaluation.imitation.TOKENS_AT_ONCE", 9)
    held = held_out(batch_size=5)
    assert len(held.batches) > 1
    for batch in held.batches:
        assert batch.layout.input_ids.numel() <= 9 or len(batch.source) == 1
    found = intervals(imitation(student(), held))
    assert {n: v.mean for n, v in found.items()} == pytest.approx(
        {n: v.mean for n, v in expected.items()}, rel=1e-5
    )


def test_places_have_means_of_their_own_where_half_of_the_prompts_reach_them():
    found = imitation(student(), held_out())
    lengths = [len(row.response_ids) for row in ROWS]
    assert sorted(lengths) == [1, 1, 3, 4, 5]  # the last two rows share a prompt
    assert [n for n in found if "@" in n] == ["forward_kl@1", "forward_kl@2", "forward_kl@4"]
    for name, part in (("1", slice(0, 1)), ("2", slice(1, 2)), ("4", slice(2, 4))):
        steps = [
            float((target.exp() * (target - own)).sum())
            for row in ROWS
            for target, own in zip(
                dense_log_probs(teacher(), row)[part],
                dense_log_probs(student(), row)[part],
                strict=True,
            )
        ]
        assert found[f"forward_kl@{name}"].mean == pytest.approx(np.mean(steps), rel=1e-4)
    assert found["forward_kl@1"].values.shape == (4,)


def test_a_larger_set_leaks_less():
    small, large = (intervals(imitation(student(), held_out(top_p=p))) for p in (0.5, 0.9))
    assert large["leak"].mean < small["leak"].mean
    assert large["forward_kl"] == small["forward_kl"]


def test_the_teacher_imitates_itself():
    found = intervals(imitation(teacher(), held_out()))
    assert found["forward_kl"].mean == pytest.approx(0.0, abs=1e-6)
    assert found["set_kl"].mean == pytest.approx(0.0, abs=1e-4)
    outside = 1 - np.mean(
        [
            float(target[members(target, 0.8)].exp().sum())
            for row in ROWS
            for target in dense_log_probs(teacher(), row)
        ]
    )
    assert any(
        action not in members(target, 0.8)
        for row in ROWS
        for target, action in zip(dense_log_probs(teacher(), row), row.response_ids, strict=True)
    )
    # The mean over rows is one over their steps.
    assert found["leak"].mean == pytest.approx(outside, rel=1e-4)


def test_intervals_are_over_rows_weighted_by_their_steps():
    found = intervals(imitation(student(), held_out()))["forward_kl"]
    sums = dense(student(), 0.8)["forward_kl"]
    rates = [s / len(row.response_ids) for s, row in zip(sums, ROWS, strict=True)]
    assert found.low is not None
    assert found.high is not None
    assert min(rates) - 1e-6 <= found.low < found.mean < found.high <= max(rates) + 1e-6
    assert found.mean != pytest.approx(float(np.mean(rates)), rel=1e-3)


def test_responses_to_one_prompt_are_one_draw_of_the_interval():
    """Every response twice: nothing new is known, so the interval is the same."""
    once, twice = (intervals(imitation(student(), held_out(rows))) for rows in (ROWS, ROWS + ROWS))
    for name, interval in once.items():
        assert twice[name].mean == pytest.approx(interval.mean)
        assert twice[name].low == pytest.approx(interval.low)
        assert twice[name].high == pytest.approx(interval.high)


def test_exposure_bias_compares_prompt_by_prompt():
    """Prompts in another order than their held-out responses, one of which has two."""
    on_teacher = imitation(student(), held_out())["forward_kl"]
    sums = dense(student(), 0.8)["forward_kl"]
    steps = [len(row.response_ids) for row in ROWS]
    theirs = [sums[i] / steps[i] for i in range(3)]
    theirs.append((sums[3] + sums[4]) / (steps[3] + steps[4]))
    prompts = examples(prompts=("i j", "a b c", "d", "e f g h"))
    ours = np.array([theirs[3], *theirs[:3]]) * [1.0, 1.5, 3.0, 2.0]
    # Two seeds of other lengths: sums over both, weighted by tokens.
    own = Sample(ours[:, None] * [[4.0, 2.0]], np.full((4, 2), [4.0, 2.0]))
    found = exposure_bias(own, prompts, on_teacher, held_out())
    assert found is not None
    assert found.mean == pytest.approx(ours.mean() / np.mean(theirs) - 1, rel=1e-4)
    assert found.interval().low is not None


def test_there_is_no_exposure_bias_of_the_teacher_or_of_other_prompts():
    own = Sample(np.ones((4, 1)), np.ones((4, 1)))
    alike, other = examples(), examples(prompts=("a b c", "d", "e f g h", "k"))
    of_teacher, of_student = (
        imitation(m, held_out())["forward_kl"] for m in (teacher(), student())
    )
    assert exposure_bias(own, alike, of_student, held_out()) is not None
    assert exposure_bias(own, alike, of_teacher, held_out()) is None
    assert exposure_bias(own, other, of_student, held_out()) is None
