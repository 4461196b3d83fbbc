"""Responses and their scores against one forward pass a response."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from judging import END, PROMPTS, examples, intervals, log_prob, student, teacher

from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.responses import (
    Responses,
    overlap,
    pass_metrics,
    respond,
    score_responses,
    text_of,
    verified,
)
from tdistill.evaluation.verifier import load_verifier
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.generation import Response
from tdistill.models.language_model import LanguageModel
from tiny import tiny_lm

SAMPLE, GREEDY = Decoding(), Decoding(greedy=True)


def made_by(
    lm: LanguageModel, decoding: Decoding = SAMPLE, *, seeds: int = 3, batch_size: int = 3
) -> Responses:
    prompts = [example.prompt_ids for example in examples()]
    sizes: dict[str, Any] = {"seeds": seeds, "batch_size": batch_size}
    return respond(lm, prompts, decoding, max_new_tokens=7, **sizes)


def rows_of(made: Responses) -> list[list[Row]]:
    """[seed][prompt], as rows."""
    return [
        [Row(e.prompt_ids, r.ids, r.ended) for e, r in zip(examples(), round_, strict=True)]
        for round_ in made.responses
    ]


def scored(made: Responses, lm: LanguageModel, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"vocabulary_size": 64, "batch_size": 3} | changes
    return intervals(score_responses(made, examples("a b"), lm, teacher(), **options))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_likelihoods_equal_the_dense_computation(batch_size: int):
    made = made_by(student())
    found = scored(made, student(), batch_size=batch_size)
    flat = [row for round_ in rows_of(made) for row in round_]
    tokens = sum(len(row.response_ids) for row in flat)
    of_teacher = np.array([log_prob(teacher(), row) for row in flat])
    assert found["teacher_nll"].mean == pytest.approx(-of_teacher.sum() / tokens, rel=1e-5)
    assert found["response_tokens"].mean == pytest.approx(tokens / len(flat))
    assert found["ended"].mean == pytest.approx(np.mean([row.ended for row in flat]))


def test_intervals_are_over_prompts():
    made = made_by(student())
    found = scored(made, student())["teacher_nll"]
    rates = []
    for prompt in zip(*rows_of(made), strict=True):
        nats = sum(-log_prob(teacher(), row) for row in prompt)
        rates.append(nats / sum(len(row.response_ids) for row in prompt))
    assert min(rates) - 1e-6 <= found.low < found.mean < found.high <= max(rates) + 1e-6


def test_the_teacher_has_no_divergence_from_itself():
    found = scored(made_by(teacher()), teacher())
    assert found["reverse_kl"].mean == pytest.approx(0.0, abs=1e-6)
    assert found["teacher_nll"].mean > 0.1


def test_greedy_responses_have_no_divergence_of_their_own():
    found = scored(made_by(student(), GREEDY), student())
    assert found["reverse_kl"] is found["sequence_reverse_kl"] is None
    assert found["entropy"].mean > 0.1


def test_divergence_by_states_estimates_that_of_whole_responses():
    """Log-ratios of drawn responses have the same mean, and more noise."""
    prompt = examples(prompts=("a b",)) * 200
    made = respond(
        student(), [e.prompt_ids for e in prompt], SAMPLE, seeds=4, max_new_tokens=3, batch_size=200
    )
    found = score_responses(made, prompt, student(), teacher(), vocabulary_size=64, batch_size=400)
    by_states = found["sequence_reverse_kl"]
    assert by_states is not None
    drawn = {r for round_ in made.responses for r in round_}
    rows = {r: Row(prompt[0].prompt_ids, r.ids, r.ended) for r in drawn}
    ratio = {r: log_prob(student(), row) - log_prob(teacher(), row) for r, row in rows.items()}
    ratios = np.array([[ratio[r] for r in round_] for round_ in made.responses]).T
    error = (ratios - by_states.values).std() / ratios.size**0.5
    assert ratios.mean() == pytest.approx(by_states.mean, abs=3 * error)
    assert error < 0.1 * by_states.mean
    assert by_states.values.std() < ratios.std()


def uniform(family: str) -> LanguageModel:
    """A model of a family that gives every token the same probability."""
    lm = tiny_lm(family)
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.zero_()
    return lm


def test_all_models_are_decoded_with_the_same_random_numbers():
    found = [made_by(uniform(f)).responses for f in ("llama", "gpt2", "qwen3")]
    assert found[0] == found[1] == found[2]
    assert found[0][0] != found[0][1], "seeds must differ"
    assert len({r.ids for r in found[0][0]}) == len(PROMPTS), "prompts must differ"


def test_greedy_is_decoded_once_and_others_once_a_seed():
    assert len(made_by(student(), GREEDY, seeds=5).responses) == 1
    assert len(made_by(student(), SAMPLE, seeds=5).responses) == 5
    assert made_by(student(), SAMPLE).responses == made_by(student(), SAMPLE).responses


@torch.no_grad()
def test_greedy_takes_the_most_probable_token():
    for row in rows_of(made_by(student(), GREEDY))[0]:
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids[:-1]]])
        logits = student().model(ids).logits[0, len(row.prompt_ids) - 1 :, :64]
        assert logits.argmax(-1).tolist() == list(row.response_ids)


def test_answers_come_back_in_the_order_of_the_prompts():
    alone = [
        respond(student(), [e.prompt_ids], GREEDY, seeds=1, max_new_tokens=7, batch_size=1)
        for e in examples()
    ]
    together = made_by(student(), GREEDY, batch_size=2).responses[0]
    assert [a.responses[0][0] for a in alone] == list(together)


def test_responses_do_not_depend_on_the_batch():
    one, three = (made_by(student(), SAMPLE, batch_size=size) for size in (1, 3))
    assert one.responses == three.responses


def test_every_response_is_reported_when_it_ends():
    seen: list[int] = []
    prompts = [example.prompt_ids for example in examples()]
    sizes: dict[str, Any] = {"seeds": 2, "max_new_tokens": 2, "batch_size": 3}
    respond(student(), prompts, SAMPLE, on_batch=seen.append, **sizes)
    assert sum(seen) == 2 * len(prompts)
    assert len(seen) > 2


def test_overlap_takes_the_best_reference_and_leaves_special_tokens_out():
    letters, other = Response((2, 3, END), True), Response((4,), False)
    made = Responses(SAMPLE, [[letters, other]])
    pair = examples("ab", "zz", prompts=("k", "l"))
    found = overlap(made, pair, student())
    assert text_of(student(), letters) == "ab"
    assert found is not None
    assert found.mean == 50.0


def test_answers_are_judged_after_their_reasoning(monkeypatch: pytest.MonkeyPatch):
    said = "<think>\nIs it cd?\n</think>\n\nab"
    monkeypatch.setattr("tdistill.evaluation.responses.text_of", lambda *_: said)
    made = Responses(SAMPLE, [[Response((2,), True)]])
    for reference in ("ab", "cd</think>ab"):
        (one,) = examples(reference, prompts=("k",))
        found = (
            overlap(made, [one], student()),
            verified(made, [one], student(), load_verifier("exact")),
        )
        assert [sample.mean for sample in found if sample is not None] == [100.0, 1.0]


def test_prompts_without_references_have_no_overlap():
    mixed = [*examples("ab", prompts=("k",)), *examples(prompts=("l",))]
    made = Responses(SAMPLE, [[Response((2,), False)] * 2])
    assert overlap(made, mixed, student()) is None


def test_pass_at_k_counts_right_samples_of_each_prompt():
    verdicts = Sample(np.array([[1.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0]]))
    found = pass_metrics(verdicts, (1, 2, 5))
    # Two of four are right: 1 - C(2, 2) / C(4, 2) = 5/6; a half-right one does not pass.
    assert {name: s.values.tolist() for name, s in found.items()} == {
        "pass_at_1": [0.5, 0.0],
        "pass_at_2": [pytest.approx(5 / 6), 0.0],
    }
