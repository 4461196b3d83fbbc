"""A model at several temperatures, against dense distributions and its own responses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from judging import dense_log_probs, exam, examples, log_prob, student, teacher

from tdistill.errors import InvalidValueError
from tdistill.evaluation.config import SweepConfig
from tdistill.evaluation.diversity import diversity, words_of
from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.responses import Responses, respond, text_of
from tdistill.evaluation.sweep import policy_divergence, sweep
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding

SWEEP = SweepConfig(temperatures=(0.3, 0.9), seeds=3)


def made(temperature: float, seeds: int = 3) -> Responses:
    prompts = [example.prompt_ids for example in examples()]
    sizes: dict[str, Any] = {"seeds": seeds, "max_new_tokens": 6, "batch_size": 3}
    return respond(student(), prompts, Decoding(temperature=temperature), **sizes)


def swept(**changes: Any) -> list[dict[str, Any]]:
    return sweep("sft", student(), exam(sweep=SweepConfig(**{**vars(SWEEP), **changes})))


def sample(point: dict[str, Any], name: str) -> Sample:
    return Sample.from_dict(point["per_prompt"][name])


def test_without_a_sweep_nothing_is_done():
    assert sweep("sft", student(), exam()) == []


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_entropy_and_divergence_equal_the_dense_computation(temperature: float, batch_size: int):
    responses = made(temperature)
    found = policy_divergence(
        responses, examples(), student(), teacher(), vocabulary_size=64, batch_size=batch_size
    )
    for seed, round_ in enumerate(responses.responses):
        for i, (example, response) in enumerate(zip(examples(), round_, strict=True)):
            row = Row(example.prompt_ids, response.ids, response.ended)
            policy = (dense_log_probs(student(), row) / temperature).log_softmax(-1)
            entropy = -(policy.exp() * policy).sum()
            divergence = (policy.exp() * (policy - dense_log_probs(teacher(), row))).sum()
            assert found["entropy"].values[i, seed] == pytest.approx(float(entropy), rel=1e-4)
            assert found["reverse_kl"].values[i, seed] == pytest.approx(float(divergence), rel=1e-4)
            weights = found["reverse_kl"].weights
            assert weights is not None and weights[i, seed] == len(response.ids)


def test_the_teacher_at_temperature_one_has_no_divergence():
    point = sweep("teacher", teacher(), exam(sweep=SweepConfig(temperatures=(0.5, 1.0))))
    assert sample(point[1], "reverse_kl").mean == pytest.approx(0.0, abs=1e-5)
    assert sample(point[0], "reverse_kl").mean > 0.05


def test_the_record_of_a_sweep():
    points = swept()
    assert json.loads(json.dumps(points, allow_nan=False)) == points
    assert [point["temperature"] for point in points] == [0.3, 0.9]
    for point in points:
        responses = made(point["temperature"])
        flat = [(i, r) for round_ in responses.responses for i, r in enumerate(round_)]
        words = [words_of(text_of(student(), r)) for _, r in flat]
        assert point["together"] == diversity(words)
        rows = [Row(examples()[i].prompt_ids, r.ids, r.ended) for i, r in flat]
        tokens = sum(len(row.response_ids) for row in rows)
        nats = -sum(log_prob(teacher(), row) for row in rows)
        assert sample(point, "teacher_nll").mean == pytest.approx(nats / tokens, rel=1e-5)
        distinct = [len({tuple(words[seed * 4 + i]) for seed in range(3)}) / 3 for i in range(4)]
        assert sample(point, "distinct_responses").values.tolist() == distinct
        assert sample(point, "rouge_l").values.shape == (4, 3)
    for name in ("entropy", "distinct_responses"):
        assert sample(points[0], name).mean < sample(points[1], name).mean
    assert points[0]["together"]["bigram_entropy"] < points[1]["together"]["bigram_entropy"]


def test_of_one_seed_responses_to_a_prompt_are_not_compared():
    assert all("distinct_responses" not in point["per_prompt"] for point in swept(seeds=1))


def test_expected_likelihood_is_entropy_and_divergence():
    """E_a[-log pi*(a)] = H + KL at every state: the sampled likelihood is near it."""
    prompt = examples(prompts=("a b",)) * 300
    responses = respond(
        student(),
        [e.prompt_ids for e in prompt],
        Decoding(temperature=0.7),
        seeds=3,
        max_new_tokens=1,
        batch_size=300,
    )
    sizes: dict[str, Any] = {"vocabulary_size": 64, "batch_size": 300}
    found = policy_divergence(responses, prompt, student(), teacher(), **sizes)
    drawn = [r.ids[0] for round_ in responses.responses for r in round_]
    dense = dense_log_probs(teacher(), Row(prompt[0].prompt_ids, (0,), ended=False))
    sampled = -dense[0, torch.tensor(drawn)]
    error = float(sampled.std()) / np.sqrt(len(drawn))
    expected = found["entropy"].mean + found["reverse_kl"].mean
    assert abs(float(sampled.mean()) - expected) < 4 * error


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperatures": (1.0,)},
        {"temperatures": (0.0, 1.0)},
        {"temperatures": (1.0, 0.5)},
        {"temperatures": (0.5, 0.5)},
        {"seeds": 0},
        {"levels": 0},
    ],
    ids=str,
)
def test_settings_that_make_no_curve_are_refused(wrong: dict):
    with pytest.raises(InvalidValueError, match=f"{next(iter(wrong))}: expected"):
        SweepConfig(**wrong)
