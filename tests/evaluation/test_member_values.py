"""What a critic says of set members, against full logits and full values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from judging import CAPTURE, ROWS, student, teacher
from torch import Tensor, nn

from tdistill.evaluation.member_values import member_values
from tdistill.evaluation.reward import read_rewards
from tdistill.teacher.source import LiveTeacher
from tdistill.training.critic import Critic
from tdistill.training.objectives import CriticConfig, ValueTiltedKD

OBJECTIVE = ValueTiltedKD(set_top_p=0.8)


def critic(form: Any = "map") -> Critic:
    """One that learned something, of no matter what."""
    embeddings = student().model.get_input_embeddings().weight
    made = Critic(embeddings, embeddings.shape[1], CriticConfig(form=form))
    generator = torch.Generator().manual_seed(3)
    for weight in made.parameters():
        nn.init.normal_(weight, std=30.0, generator=generator)
    return made.requires_grad_(False)


def hidden_states(ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the output layer reads, and the logits."""
    kept = []
    hook = (
        student()
        .model.get_output_embeddings()
        .register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    )
    with torch.no_grad():
        logits = student().model(ids).logits
    hook.remove()
    return kept[0][0], logits[0]


def dense(own: Critic, hidden: Tensor) -> Tensor:
    """g of every token at every state."""
    unit = hidden / hidden.square().mean(1, keepdim=True).sqrt()
    value = unit @ own.value / hidden.shape[1] + own.offset
    return value[:, None] + own.scale * own.function(unit) @ own.table.T


def test_the_costs_of_a_reading_are_those_of_its_tokens() -> None:
    source, own = LiveTeacher(teacher(), CAPTURE), critic()
    how: Any = {"vocabulary_size": 64, "batch_size": 2}
    found = read_rewards(student(), OBJECTIVE, ROWS, source, critic=own, **how)
    for row, reading in zip(ROWS, found, strict=True):
        hidden, _ = hidden_states(torch.tensor([[*row.prompt_ids, *row.response_ids[:-1]]]))
        to_go = dense(own, hidden[len(row.prompt_ids) - 1 :])
        steps = torch.arange(len(row.response_ids))
        expected = to_go[steps, list(row.response_ids)].tolist()
        assert reading.cost_to_go == pytest.approx(expected, rel=1e-4, abs=1e-4)
    (without, *_) = read_rewards(student(), OBJECTIVE, ROWS, source, **how)
    assert without.cost_to_go == ()


def test_the_steps_are_those_that_spare_most_and_the_members_are_as_they_are() -> None:
    source, own = LiveTeacher(teacher(), CAPTURE), critic()
    found = member_values(
        "m", student(), own, OBJECTIVE, rows=ROWS, source=source, vocabulary_size=64
    )
    assert len(found) == len(ROWS)
    assert sum(len(record["steps"]) for record in found) > 3
    for row, record in zip(ROWS, found, strict=True):
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids[:-1]]])
        hidden, logits = hidden_states(ids)
        first = len(row.prompt_ids) - 1
        to_go = dense(own, hidden)
        evidence = source.evidence([row], set_top_p=OBJECTIVE.set_top_p)
        spared = []
        for t, action in enumerate(row.response_ids):
            members, log_probs = evidence.sets.row(t)
            inside = members.tolist()
            if action not in inside:
                inside.append(action)
                log_probs = torch.cat([log_probs, evidence.action_log_prob[t : t + 1]])
            pi, mu = logits[first + t, inside].softmax(0), log_probs.softmax(0)
            g = to_go[first + t, inside]
            spared.append(float(mu @ g - pi @ g))
            shown = next((s for s in record["steps"] if s["step"] == t), None)
            if shown is not None:
                texts = [student().tokenizer.decode([i]) for i in inside][:6]
                order = [m["token"] for m in shown["members"]]
                assert sorted(order) == sorted(texts) or len(inside) > 6
                assert len(order) == min(6, len(inside))
                for m in shown["members"]:
                    i = [student().tokenizer.decode([x]) for x in inside].index(m["token"])
                    assert m["teacher"] == pytest.approx(float(mu[i]), abs=1e-5)
                    assert m["student"] == pytest.approx(float(pi[i]), abs=1e-5)
                    assert m["cost"] == pytest.approx(float(g[i] - mu @ g), rel=1e-4, abs=1e-4)
        steps = [s["step"] for s in record["steps"]]
        worth = [t for t in range(len(spared)) if spared[t] > 1e-3]
        assert steps == sorted(sorted(worth, key=lambda t: -spared[t])[:5])
        assert [s["spared"] for s in record["steps"]] == pytest.approx(
            [spared[t] for t in steps], rel=1e-4, abs=1e-4
        )


def test_a_critic_of_nothing_spares_nothing() -> None:
    embeddings = student().model.get_input_embeddings().weight
    untaught = Critic(embeddings, embeddings.shape[1], CriticConfig())
    source = LiveTeacher(teacher(), CAPTURE)
    found = member_values(
        "m", student(), untaught, OBJECTIVE, rows=ROWS[:1], source=source, vocabulary_size=64
    )
    assert found[0]["steps"] == []
