"""Judging a model: its rows, its tuned temperature, its samples."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from judging import exam, examples, student, teacher

from tdistill.data.examples import Example
from tdistill.errors import InvalidValueError
from tdistill.evaluation.config import EvaluationConfig
from tdistill.evaluation.evaluate import Exam, judge, tuned_temperature
from tdistill.evaluation.responses import respond, text_of
from tdistill.models.decoding import Decoding

COLD, WARM, HOT = 0.2, 0.9, 3.0


def answered(prompts: list[Example], temperature: float) -> list[Example]:
    """The same prompts, with the student's own responses at a temperature as references."""
    made = respond(
        student(),
        [e.prompt_ids for e in prompts],
        Decoding(temperature=temperature),
        seeds=2,
        max_new_tokens=6,
        batch_size=3,
    )
    references = [
        tuple(text_of(student(), round_[i]) for round_ in made.responses)
        for i in range(len(prompts))
    ]
    return [replace(e, references=r) for e, r in zip(prompts, references, strict=True)]


def tuned_exam(of_valid: float, of_test: float) -> Exam:
    """Best answered at one temperature on valid, and at another on test."""
    return exam(
        valid=answered(examples(prompts=("k l", "m", "n o p")), of_valid),
        test=answered(examples(), of_test),
        tuned_models=("start",),
        tuned_temperatures=(COLD, WARM, HOT),
    )


@pytest.mark.parametrize(("of_valid", "of_test"), [(COLD, HOT), (WARM, COLD), (HOT, WARM)])
def test_the_temperature_is_chosen_on_valid_and_never_on_test(of_valid: float, of_test: float):
    prepared = tuned_exam(of_valid, of_test)
    assert tuned_temperature("start", student(), prepared) == of_valid
    rows = {s["decoding"]: s for s in judge("start", student(), prepared)["scores"]}
    assert rows["tuned"]["temperature"] == of_valid
    assert rows["tuned"]["prompts"] == 4
    assert rows["tuned"]["metrics"]["rouge_l"]["mean"] < 100


def test_only_named_models_are_tuned_and_only_with_valid_prompts():
    prepared = tuned_exam(COLD, HOT)
    names = [s["decoding"] for s in judge("sft", student(), prepared)["scores"]]
    assert names == ["greedy", "sample", "nucleus"]
    without = replace(prepared, valid=())
    names = [s["decoding"] for s in judge("start", student(), without)["scores"]]
    assert names == ["greedy", "sample", "nucleus"]


def test_the_record_of_a_model():
    found = judge("sft", student(), exam())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    rows = {s["decoding"]: s for s in found["scores"]}
    assert {n: (s["seeds"], s["temperature"], s["sampling_top_p"]) for n, s in rows.items()} == {
        "greedy": (1, 0.0, 1.0),
        "sample": (2, 1.0, 1.0),
        "nucleus": (2, 1.0, 0.8),
    }
    for row in rows.values():
        assert row["model"] == "sft"
        assert row["prompts"] == 4
        places = {f"own_forward_kl@{step}" for step in (1, 2, 4, 8)}
        assert set(row["metrics"]) == places | {
            "rouge_l",
            "teacher_nll",
            "reverse_kl",
            "sequence_reverse_kl",
            "own_forward_kl",
            "exposure_bias",
            "entropy",
            "response_tokens",
            "ended",
            "repetition",
        }
    places = {f"forward_kl@{step}" for step in (1, 2, 4)}
    assert set(found["imitation"]["metrics"]) == places | {"forward_kl", "set_kl", "leak"}
    assert found["imitation"]["model"] == "sft"


def test_samples_are_the_greedy_responses_to_the_first_prompts():
    prepared = exam(samples=2)
    greedy = respond(
        student(),
        [e.prompt_ids for e in prepared.test],
        Decoding(greedy=True),
        seeds=1,
        max_new_tokens=6,
        batch_size=3,
    )
    expected = [text_of(student(), r) for r in greedy.responses[0][:2]]
    assert judge("sft", student(), prepared)["samples"] == expected


def test_without_a_greedy_decoding_samples_are_of_the_first():
    prepared = exam(decodings={"warm": Decoding(temperature=0.7), "sample": Decoding()}, samples=3)
    found = judge("sft", student(), prepared)
    assert [s["decoding"] for s in found["scores"]] == ["warm", "sample"]
    assert len(found["samples"]) == 3


def test_the_teacher_is_judged_like_any_other():
    found = judge("teacher", teacher(), exam())
    sample = found["scores"][1]["metrics"]
    assert sample["reverse_kl"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert found["imitation"]["metrics"]["forward_kl"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert sample["exposure_bias"] is None
    other = judge("sft", student(), exam())
    assert other["imitation"]["metrics"]["forward_kl"]["mean"] > 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": 0},
        {"pass_k": (2, 0)},
        {"tuned_temperatures": (0.5, 0.0)},
        {"max_new_tokens": 0},
        {"batch_size": 0},
        {"samples": -1},
        {"decodings": {}},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict):
    with pytest.raises(InvalidValueError, match=f"{next(iter(wrong))}: expected"):
        EvaluationConfig(**wrong)
