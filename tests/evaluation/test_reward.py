"""Implied rewards against full logits, one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from judging import CAPTURE, END, ROWS, student, teacher

from tdistill.evaluation.reward import reward_traces
from tdistill.teacher.evidence import Row
from tdistill.teacher.source import LiveTeacher
from tdistill.training.objectives import KD, BellmanDistill, Objective

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
