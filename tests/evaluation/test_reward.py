"""Implied rewards against full logits, one row at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from judging import CAPTURE, END, ROWS, dense_log_probs, student, teacher, widened

from tdistill.errors import ModelError
from tdistill.evaluation import reward
from tdistill.evaluation.reward import Reading, read_rewards, reward_traces
from tdistill.evidence.rows import Row
from tdistill.models.layout import Layout, in_passes
from tdistill.teacher.source import LiveTeacher
from tdistill.training.objectives import KD, BellmanDistill, Objective, TemporalDifference
from tiny import tiny_lm

GAMMA = 0.9
CHOICES: dict[str, Objective] = {
    "raw": BellmanDistill(shift="raw", q_min=None, discount=GAMMA),
    "set-max": BellmanDistill(shift="set-max", q_min=-2.0, discount=GAMMA),
    "vocabulary-max": BellmanDistill(shift="vocabulary-max", q_min=-3.0, discount=GAMMA),
    "normalised": BellmanDistill(shift="normalised", q_min=None, discount=GAMMA),
    "none of its own": KD(discount=GAMMA, set_top_p=0.8),
}


def traces(objective: Objective, rows: tuple[Row, ...] = ROWS) -> list[dict[str, Any]]:
    live = LiveTeacher(teacher(), CAPTURE)
    return reward_traces("m", student(), objective, rows, live, vocabulary_size=64)


@torch.no_grad()
def dense(objective: Objective, row: Row) -> tuple[list[float], list[float]]:
    """V_p at every step and Q - gamma V_p(s') where there is a successor, from full logits."""
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids[:-1]]])
    first = len(row.prompt_ids) - 1
    logits = student().model(ids).logits[0, first:, :64].double()
    sets = LiveTeacher(teacher(), CAPTURE).evidence([row], set_top_p=objective.set_top_p).sets
    values, qs = [], []
    for t, action in enumerate(row.response_ids):
        members = sets.row(t)[0].tolist()
        members += [action] if action not in members else []
        z, shift, q_min = logits[t], 0.0, None
        if isinstance(objective, BellmanDistill):
            q_min = objective.q_min
            shift = {
                "raw": 0.0,
                "set-max": float(z[members].max()),
                "vocabulary-max": float(z.max()),
                "normalised": float(z.logsumexp(0)),
            }[objective.shift]
        q = (z - shift).clamp(min=-1e9 if q_min is None else q_min)
        values.append(float(q[members].logsumexp(0)))
        qs.append(float(q[action]))
    return values, [
        q - (GAMMA * values[t + 1] if t + 1 < len(qs) else 0.0) for t, q in enumerate(qs)
    ]


@pytest.mark.parametrize("name", CHOICES)
def test_it_equals_the_dense_computation(name: str):
    objective = CHOICES[name]
    for trace, row in zip(traces(objective), ROWS, strict=True):
        values, rewards = dense(objective, row)
        assert trace["value"] == pytest.approx(values, abs=1e-4)
        known = len(rewards) if row.ended else len(rewards) - 1
        assert trace["implied_reward"][:known] == pytest.approx(rewards[:known], abs=1e-4)


def test_the_reward_is_unknown_at_the_cut_end_only():
    for trace, row in zip(traces(CHOICES["raw"]), ROWS, strict=True):
        unknown = [reward is None for reward in trace["implied_reward"]]
        assert unknown == [False] * (len(unknown) - 1) + [not row.ended]
        assert None not in trace["value"]


def test_texts_stand_next_to_the_numbers():
    first = traces(CHOICES["raw"])[0]
    assert first["model"] == "m"
    assert first["prompt"] == "abc"
    assert first["tokens"] == ["d", "e", "<end>"]
    assert len(first["tokens"]) == len(first["value"]) == len(first["implied_reward"])


def test_an_end_token_earns_its_whole_q():
    row = Row((10, 11), (END,), ended=True)
    found = traces(CHOICES["raw"], (row,))[0]["implied_reward"]
    with torch.no_grad():
        logits = student().model(torch.tensor([row.prompt_ids])).logits[0, -1]
    assert found == pytest.approx([float(logits[END])], abs=1e-5)


def readings(objective: Objective, rows: tuple[Row, ...] = ROWS, **options: Any) -> list[Reading]:
    live = LiveTeacher(teacher(), CAPTURE)
    return read_rewards(student(), objective, rows, live, vocabulary_size=64, **options)


def test_rows_are_bounded_by_tokens(monkeypatch: pytest.MonkeyPatch):
    expected = readings(TemporalDifference())
    widths: list[int] = []
    scores = reward.step_scores

    def noted(model: Any, layout: Layout, **options: Any) -> Any:
        widths.append(layout.input_ids.numel())
        return scores(model, layout, **options)

    monkeypatch.setattr(reward, "step_scores", noted)
    monkeypatch.setattr(reward, "TOKENS_AT_ONCE", 10)
    monkeypatch.setattr(reward, "in_passes", partial(in_passes, most_tokens=10))
    found = readings(TemporalDifference())
    longest = max(len(row.prompt_ids) + len(row.response_ids) - 1 for row in ROWS)
    assert len(widths) > 1 and max(widths) <= max(10, longest)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.value == pytest.approx(theirs.value, abs=1e-4)
        assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-4)


@torch.no_grad()
def on_the_set(row: Row) -> tuple[list[float], list[float]]:
    """Log-likelihood of each token on its set of mass 0.8, and the raw V_p, in float64."""
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids[:-1]]])
    logits = student().model(ids).logits[0, len(row.prompt_ids) - 1 :, :64].double()
    sets = LiveTeacher(teacher(), CAPTURE).evidence([row], set_top_p=0.8).sets
    likelihood, values = [], []
    for t, action in enumerate(row.response_ids):
        members = sorted({*sets.row(t)[0].tolist(), action})
        policy = logits[t, members].log_softmax(0)
        likelihood.append(float(policy[members.index(action)]))
        values.append(float(logits[t, members].logsumexp(0)))
    return likelihood, values


ENDED = tuple(row for row in ROWS if row.ended)


def test_at_discount_1_the_total_is_value_of_the_prompt_plus_likelihood_on_the_set():
    for reading, row in zip(readings(TemporalDifference(discount=1.0), ENDED), ENDED, strict=True):
        likelihood, values = on_the_set(row)
        assert reading.total == pytest.approx(values[0] + sum(likelihood), abs=1e-4)
        assert reading.discounted == pytest.approx(reading.total)


def test_the_discounted_sum_is_value_of_the_prompt_plus_discounted_likelihood():
    objective = TemporalDifference(discount=GAMMA)
    for reading, row in zip(readings(objective), ROWS, strict=True):
        likelihood, values = on_the_set(row)
        known = len(likelihood) if row.ended else len(likelihood) - 1
        wanted = values[0] + sum(GAMMA**t * x for t, x in enumerate(likelihood[:known]))
        if not row.ended:
            wanted -= GAMMA**known * values[-1]
        found = 0.0 if reading.discounted is None else reading.discounted
        assert found == pytest.approx(wanted, abs=1e-4)


def test_below_discount_1_the_total_pays_for_length():
    for reading, row in zip(
        readings(TemporalDifference(discount=GAMMA), ENDED), ENDED, strict=True
    ):
        likelihood, values = on_the_set(row)
        bonus = (1 - GAMMA) * sum(values[1:])
        assert reading.total == pytest.approx(values[0] + sum(likelihood) + bonus, abs=1e-4)


@torch.no_grad()
def test_the_shift_moves_the_discounted_sum_by_its_first_constant_only():
    raw = readings(TemporalDifference(discount=GAMMA), ENDED)
    normalised = readings(TemporalDifference(discount=GAMMA, shift="normalised"), ENDED)
    for a, b, row in zip(raw, normalised, ENDED, strict=True):
        first = student().model(torch.tensor([row.prompt_ids])).logits[0, -1, :64].logsumexp(-1)
        assert a.discounted is not None
        assert b.discounted is not None
        assert a.discounted - b.discounted == pytest.approx(float(first), abs=1e-4)


def test_log_probs_are_over_the_vocabulary():
    for reading, row in zip(readings(TemporalDifference()), ROWS, strict=True):
        steps = torch.arange(len(row.response_ids)), torch.tensor(row.response_ids)
        own, theirs = dense_log_probs(student(), row), dense_log_probs(teacher(), row)
        assert reading.log_prob == pytest.approx(own[steps].tolist(), abs=1e-4)
        assert reading.teacher_log_prob == pytest.approx(theirs[steps].tolist(), abs=0.01)


def test_tokens_off_the_set_are_counted():
    for reading, row in zip(readings(TemporalDifference()), ROWS, strict=True):
        sets = LiveTeacher(teacher(), CAPTURE).evidence([row], set_top_p=0.8).sets
        outside = [a not in sets.row(t)[0].tolist() for t, a in enumerate(row.response_ids)]
        assert list(reading.off_set) == outside
    found = readings(TemporalDifference())
    assert {off for reading in found for off in reading.off_set} == {False, True}


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batches_change_nothing(batch_size: int):
    done: list[int] = []
    parts = readings(TemporalDifference(), batch_size=batch_size, on_batch=done.append)
    assert sum(done) == len(ROWS)
    for part, whole in zip(parts, readings(TemporalDifference()), strict=True):
        assert part.value == pytest.approx(whole.value, abs=1e-4)
        assert part.log_prob == pytest.approx(whole.log_prob, abs=1e-4)
        assert part.off_set == whole.off_set


def test_sums_leave_out_what_is_unknown():
    reading = Reading((2.0, -1.0, None), (0.0,) * 3, (), (), (), discount=0.5)
    assert (reading.total, reading.discounted, reading.mean) == (1.0, 1.5, 0.5)
    unknown = Reading((None,), (0.0,), (), (), (), discount=0.5)
    assert (unknown.total, unknown.discounted, unknown.mean) == (None, None, None)


def test_a_diverged_model_is_refused():
    broken = widened(tiny_lm("llama", seed=3))
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"weight model\.embed_tokens\.weight holds NaN"):
        read_rewards(
            broken,
            TemporalDifference(),
            ROWS,
            LiveTeacher(teacher(), CAPTURE),
            vocabulary_size=64,
        )
