"""What vLLM 0.32 answered, read into the tensors of the same model at hand."""

from __future__ import annotations

import json
from typing import Any

import torch

from recorded import ASKED, ENDS_AT_ONCE, HOW, PATH, ROWS, served_lm
from tdistill.evidence.evidence import Evidence, concatenate
from tdistill.evidence.rows import Row
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.listing.answers import response_in, steps_in, texts_in
from tdistill.teacher.listing.steps import listed_evidence
from tdistill.teacher.source import LiveTeacher

CAPTURE = CaptureConfig(captured_top_p=0.9, max_set_size=24)


def answers() -> dict[str, Any]:
    return json.loads(PATH.read_text())


def assert_as_at_hand(found: Evidence, rows: list[Row]) -> None:
    """Up to rounding to neighbouring levels, and to members of equal mass at the end of a set."""
    expected = LiveTeacher(served_lm(), CAPTURE).evidence(rows)
    assert torch.equal(found.sets.ids, expected.sets.ids)
    rounding: dict[str, float] = {"rtol": 0, "atol": 2.0**-7}
    torch.testing.assert_close(found.sets.log_probs, expected.sets.log_probs, **rounding)
    torch.testing.assert_close(found.action_log_prob, expected.action_log_prob, **rounding)


def test_sampled_responses_have_the_evidence_of_the_model():
    rows, parts = [], []
    for asked, answer in zip(ASKED, answers()["responses"], strict=True):
        found = response_in(answer, asked, HOW, "tiny")
        rows.append(Row(asked.prompt, found.ids, found.ended))
        evidence, incomplete = listed_evidence(found.steps, CAPTURE)
        assert incomplete == ()
        parts.append(evidence)
    assert {row.ended for row in rows} == {True, False}
    assert len({row.response_ids for row in rows}) > len(rows) // 2
    assert_as_at_hand(concatenate(parts), rows)


def test_every_stop_token_that_is_sent_ends_a_response():
    found = response_in(answers()["at_once"], ASKED[0], ENDS_AT_ONCE, "tiny")
    assert (len(found.ids), found.ended) == (1, True)


def test_given_responses_have_the_evidence_of_the_model():
    parts = []
    for row, answer in zip(ROWS, answers()["read"], strict=True):
        steps = steps_in(answer, row, HOW, "tiny")
        assert len(steps) == len(row.response_ids)
        parts.append(listed_evidence(steps, CAPTURE)[0])
    assert_as_at_hand(concatenate(parts), list(ROWS))


def test_the_tokens_have_their_texts():
    tokenizer = served_lm().tokenizer
    for row, answer in zip(ROWS, answers()["read"], strict=True):
        whole = [*row.prompt_ids, *row.response_ids]
        texts = texts_in(answer, whole, "tiny")
        assert set(texts) == set(whole[1:])
        assert all(text.strip() == tokenizer.decode([token]) for token, text in texts.items())


def test_the_card_of_the_model_is_as_expected():
    (card,) = answers()["models"]["data"]
    assert (card["id"], card["max_model_len"]) == ("tiny", 128)
