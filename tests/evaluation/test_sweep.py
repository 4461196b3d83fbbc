"""A model at several temperatures, against its own responses at each."""

from __future__ import annotations

import json
from typing import Any

import pytest
from judging import exam, examples, log_prob, student, teacher

from tdistill.errors import InvalidValueError
from tdistill.evaluation.config import SweepConfig
from tdistill.evaluation.diversity import diversity, words_of
from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.responses import Responses, respond, text_of
from tdistill.evaluation.sweep import sweep
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
        assert "exact_match" not in point["per_prompt"]
    for name in ("entropy", "distinct_responses"):
        assert sample(points[0], name).mean < sample(points[1], name).mean
    assert points[0]["together"]["bigram_entropy"] < points[1]["together"]["bigram_entropy"]


def test_a_verifier_judges_every_temperature():
    judged = exam(sweep=SWEEP, verify="exact")
    for point in sweep("sft", student(), judged):
        assert sample(point, "exact_match").values.tolist() == [[0.0] * 3] * 4


def test_of_one_seed_responses_to_a_prompt_are_not_compared():
    assert all("distinct_responses" not in point["per_prompt"] for point in swept(seeds=1))


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
