"""What is kept of the teacher at a step."""

from __future__ import annotations

import pytest
import torch

from tdistill.core import top_p_sets, truncate_by_gain
from tdistill.errors import InvalidValueError
from tdistill.evidence.evidence import Evidence, concatenate, take_responses, take_steps
from tdistill.evidence.rows import Row
from tdistill.teacher.cache.rounding import round_log_probs
from tdistill.teacher.capture import Recorder, capture
from tdistill.teacher.config import CaptureConfig
from teaching import assert_equal, record

THREE = [record((2,), (3,) * n, seed=n).evidence for n in (4, 1, 6)]


def test_evidence_is_laid_end_to_end():
    whole = concatenate(THREE)
    assert len(whole.sets) == 11
    at = 0
    for part in THREE:
        for t in range(len(part.sets)):
            for a, b in zip(whole.sets.row(at), part.sets.row(t), strict=True):
                assert torch.equal(a, b)
            assert whole.log_normaliser[at] == part.log_normaliser[t]
            assert whole.action_log_prob[at] == part.action_log_prob[t]
            at += 1


def test_responses_are_taken_apart_again():
    for found, part in zip(take_responses(concatenate(THREE), [4, 1, 6]), THREE, strict=True):
        assert_equal(found, part)


def test_steps_are_taken_in_the_order_asked():
    whole = concatenate(THREE)
    chosen = torch.tensor([9, 0, 9, 4])
    taken = take_steps(whole, chosen)
    assert len(taken.sets) == 4
    for at, t in enumerate(chosen.tolist()):
        assert torch.equal(taken.sets.row(at)[0], whole.sets.row(t)[0])
        assert torch.equal(taken.sets.row(at)[1], whole.sets.row(t)[1])
    assert torch.equal(taken.log_normaliser, whole.log_normaliser[chosen])
    assert torch.equal(taken.action_log_prob, whole.action_log_prob[chosen])


def test_a_recorder_sorts_the_steps_of_a_batch_by_row():
    """Rows 0 to 2 of 3, 1 and 2 steps, recorded as they are sampled."""
    whole = concatenate(THREE)
    recorder = Recorder()
    for rows, steps in (([0, 1, 2], [0, 1, 2]), ([0, 2], [3, 4]), ([0], [5])):
        recorder.add(torch.tensor(rows), take_steps(whole, torch.tensor(steps)))
    for found, steps in zip(recorder.by_row(), ([0, 3, 5], [1], [2, 4]), strict=True):
        assert_equal(found, take_steps(whole, torch.tensor(steps)))


def test_capture_keeps_the_set_the_normaliser_and_the_action():
    logits = 3.0 * torch.randn(7, 64, generator=torch.Generator().manual_seed(2))
    kept = capture(logits, CaptureConfig(0.9, None))
    expected = top_p_sets(logits.log_softmax(-1), 0.9)
    assert torch.equal(kept.sets.ids, expected.ids)
    assert torch.equal(kept.sets.offsets, expected.offsets)
    assert torch.equal(
        kept.sets.log_probs, round_log_probs(kept.log_probs)[expected.step, expected.ids]
    )
    exact = logits.exp().sum(-1).log()
    torch.testing.assert_close(kept.log_normaliser, exact, atol=0.001, rtol=0)
    # Q_T = log_probs + log_normaliser: the teacher's logits come back.
    again = kept.sets.log_probs + kept.log_normaliser[kept.sets.step]
    torch.testing.assert_close(again, logits[kept.sets.step, kept.sets.ids], atol=0.005, rtol=0)
    actions = torch.tensor([3, 0, 63, 5, 9, 9, 1])
    exact = logits.log_softmax(-1)[torch.arange(7), actions]
    torch.testing.assert_close(kept.action_log_prob(actions), exact, atol=0.004, rtol=0)
    assert torch.equal(
        round_log_probs(kept.action_log_prob(actions)), kept.action_log_prob(actions)
    )


def test_capture_obeys_the_cap():
    logits = torch.zeros(3, 64)
    assert capture(logits, CaptureConfig(0.9, 5)).sets.sizes.tolist() == [5, 5, 5]
    assert capture(logits, CaptureConfig(0.9, None)).sets.sizes.tolist() == [58, 58, 58]
    assert capture(logits, CaptureConfig(1.0, None)).sets.sizes.tolist() == [64, 64, 64]


def test_capture_ends_sets_by_their_gain():
    logits = 3.0 * torch.randn(7, 64, generator=torch.Generator().manual_seed(2))
    found = capture(logits, CaptureConfig(0.99, 20, min_gain=0.05)).sets
    whole = top_p_sets(logits.log_softmax(-1), 0.99, max_size=20)
    assert torch.equal(found.ids, truncate_by_gain(whole, 0.05).ids)
    assert 7 < len(found.ids) < len(whole.ids)
    with pytest.raises(InvalidValueError, match="min_gain: expected at least 0 nats"):
        CaptureConfig(min_gain=-0.1)


@pytest.mark.parametrize(
    ("prompt", "response", "name"), [((), (3,), "prompt"), ((3,), (), "response")]
)
def test_a_row_without_state_or_action_is_refused(
    prompt: tuple[int], response: tuple[int], name: str
):
    with pytest.raises(InvalidValueError, match=f"{name}_ids: expected at least one token"):
        Row(prompt, response, ended=False)


@pytest.mark.parametrize(("mass", "cap"), [(0.0, None), (1.1, None), (0.9, 0)])
def test_impossible_captures_are_refused(mass: float, cap: int | None):
    with pytest.raises(InvalidValueError, match=r"captured_top_p|max_set_size"):
        CaptureConfig(mass, cap)


def test_evidence_moves_as_a_whole():
    moved = THREE[0].to("cpu")
    assert isinstance(moved, Evidence)
    assert_equal(moved, THREE[0])
