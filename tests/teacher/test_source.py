"""Cached and live teachers give the same tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tdistill.core import top_p_sets
from tdistill.errors import InvalidValueError
from tdistill.evidence.evidence import concatenate
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import pack
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.scoring import collect_scores
from tdistill.teacher.source import CachedTeacher, LiveTeacher
from teaching import CAPTURE, assert_close, roll, teacher
from tiny import FAMILIES, tiny_lm

ROWS = [
    Row((3, 4, 5), (9, 7, 1), True),
    Row((8,), (30, 31, 12, 2), False),
    Row((5,) * 6, (1,), True),
    Row((40, 2), (63, 0, 17, 17, 5), False),
]
STEPS = 13


def score(folder: Path, lm: LanguageModel, config: CaptureConfig = CAPTURE) -> Cache:
    """A cache of what the teacher thinks of the rows."""
    with CacheWriter(folder, identity_of(lm, config)) as writer:
        assert sum(collect_scores(LiveTeacher(lm, config), ROWS, writer)) == len(ROWS)
    return Cache(folder)


def padded_like(small: LanguageModel) -> LanguageModel:
    """The same network with eight output rows that are only padding, and large."""
    large = tiny_lm(seed=1, vocab_size=72)
    weights = large.model.state_dict()
    for name, weight in small.model.state_dict().items():
        weights[name][: len(weight)] = weight
        weights[name][len(weight) :] *= 20.0
    large.model.load_state_dict(weights)
    return large


@pytest.mark.parametrize("p", [None, 0.9, 0.8, 0.5, 0.05])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_and_live_are_equal(family: str, p: float | None, tmp_path: Path):
    lm = teacher(family)
    cached = CachedTeacher(score(tmp_path, lm))
    live = LiveTeacher(lm, CAPTURE)
    # The rows in another order, so in another batch; then in the one that was scored.
    for rows in (ROWS[::-1], cached.cache.rows()):
        found, expected = cached.evidence(rows, set_top_p=p), live.evidence(rows, set_top_p=p)
        assert len(found.sets) == STEPS
        assert_close(found, expected)
    torch.testing.assert_close(found.log_normaliser, expected.log_normaliser, atol=1e-5, rtol=0)
    assert torch.equal(found.sets.log_probs, expected.sets.log_probs)


@pytest.mark.parametrize("cap", [1, 4])
def test_cached_and_live_agree_where_the_cap_binds(cap: int, tmp_path: Path):
    config = CaptureConfig(0.9, cap)
    cached = CachedTeacher(score(tmp_path, teacher(), config))
    live = LiveTeacher(teacher(), config)
    for p in (None, 0.9, 0.6):
        found = cached.evidence(ROWS, set_top_p=p)
        assert found.sets.sizes.max() == cap
        assert_close(found, live.evidence(ROWS, set_top_p=p))


def test_rows_that_are_read_in_parts_are_in_order(monkeypatch: pytest.MonkeyPatch):
    live = LiveTeacher(teacher(), CaptureConfig(0.9, 4, tail_samples=3))
    expected = live.evidence(ROWS)
    monkeypatch.setattr("tdistill.teacher.source.TOKENS_AT_ONCE", 6)
    seen: list[int] = []
    scores = live.scores
    monkeypatch.setattr(
        live, "scores", lambda laid: seen.append(laid.input_ids.numel()) or scores(laid)
    )
    found = live.evidence(ROWS)
    assert len(seen) == 4 and max(seen) == 6
    assert_close(found, expected)
    assert found.tail is not None and expected.tail is not None
    assert torch.equal(found.tail.ids, expected.tail.ids)


def test_sampled_rows_too(tmp_path: Path):
    cached = CachedTeacher(roll(tmp_path))
    rows = cached.cache.rows()[::-1]
    live = LiveTeacher(teacher(), CAPTURE)
    for p in (None, 0.8, 0.5):
        assert_close(cached.evidence(rows, set_top_p=p), live.evidence(rows, set_top_p=p))


@pytest.mark.parametrize("family", FAMILIES)
def test_live_evidence_is_the_models_own_distribution(family: str):
    found = LiveTeacher(teacher(family), CAPTURE).evidence(ROWS)
    parts, actions = [], []
    for row in ROWS:
        first, count = len(row.prompt_ids) - 1, len(row.response_ids)
        with torch.no_grad():
            out = (
                teacher(family)
                .model(torch.tensor([[*row.prompt_ids, *row.response_ids]]))
                .logits[0]
            )
        parts.append(out[first : first + count])
        actions += row.response_ids
    logits = torch.cat(parts)
    log_probs = logits.log_softmax(-1)
    sets = top_p_sets(log_probs, 0.9)
    assert torch.equal(found.sets.ids, sets.ids)
    assert torch.equal(found.sets.offsets, sets.offsets)
    close = {"rtol": 0, "atol": 0.004}
    torch.testing.assert_close(found.sets.log_probs, sets.log_probs, **close)
    own = log_probs[torch.arange(STEPS), torch.tensor(actions)]
    torch.testing.assert_close(found.action_log_prob, own, **close)
    torch.testing.assert_close(found.log_normaliser, logits.logsumexp(-1), atol=0.001, rtol=0)


@pytest.mark.parametrize("head", ["linear", "full"])
def test_padding_of_the_teachers_matrix_does_not_count(head: str, tmp_path: Path):
    small, large = tiny_lm(seed=1), padded_like(tiny_lm(seed=1))
    expected = LiveTeacher(small, CAPTURE).evidence(ROWS)
    live = LiveTeacher(large, CAPTURE, head="linear" if head == "linear" else "full")
    assert live.vocabulary_size == 64
    assert_close(live.evidence(ROWS), expected)
    assert_close(CachedTeacher(score(tmp_path, large)).evidence(ROWS), expected)
    # Without the cut the padding would take most of the mass.
    with torch.no_grad():
        uncut = large.model(torch.tensor([[3, 4, 5]])).logits[0, -1].logsumexp(-1)
    assert abs(uncut - expected.log_normaliser[0]) > 0.1


def test_a_smaller_vocabulary_can_be_asked_for():
    found = LiveTeacher(teacher(), CAPTURE, vocabulary_size=40).evidence([Row((3,), (5, 6), False)])
    assert found.sets.ids.max() < 40
    with torch.no_grad():
        logits = teacher().model(torch.tensor([[3, 5]])).logits[0, :, :40]
    torch.testing.assert_close(found.log_normaliser, logits.logsumexp(-1), atol=0.001, rtol=0)


def test_many_steps_are_captured_in_chunks(monkeypatch: pytest.MonkeyPatch):
    live = LiveTeacher(teacher(), CAPTURE)
    expected = live.evidence(ROWS)
    monkeypatch.setattr("tdistill.teacher.source._CHUNK", 3)
    assert_close(live.evidence(ROWS), expected)


def test_a_larger_mass_than_captured_is_refused():
    with pytest.raises(InvalidValueError, match=r"at most captured_top_p = 0\.9, found 0\.95"):
        LiveTeacher(teacher(), CAPTURE).evidence(ROWS, set_top_p=0.95)


def test_nothing_of_the_live_teacher_asks_for_gradients():
    lm = tiny_lm("phi")  # with a bias in its output layer
    live = LiveTeacher(lm, CAPTURE)
    found = live.evidence(ROWS)
    assert not found.sets.log_probs.requires_grad
    assert not found.log_normaliser.requires_grad
    # Read later, where the student's gradients are on.
    scores = live.scores(pack(ROWS, pad_id=1))
    assert torch.is_grad_enabled()
    assert not scores.rows(0, 2).requires_grad
    assert not scores.at(torch.tensor([3]), torch.tensor([0])).requires_grad
    assert not scores.reduce(lambda z: z.logsumexp(-1), chunk_size=4).requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_the_responses_of_a_prompt_are_scored_in_one_row(family: str):
    prompts = ((3, 4, 5, 6, 7, 8), (9,), (10, 11))
    rows = [Row(prompts[i % 3], (20 + i, *range(30, 30 + i)), i % 2 == 0) for i in range(7)]
    live = LiveTeacher(teacher(family), CAPTURE)
    apart = concatenate([live.evidence([row]) for row in rows])
    sizes: list[int] = []
    hook = live.teacher.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, ids: sizes.append(ids[0].numel())
    )
    found = live.evidence(rows)
    hook.remove()
    assert_close(found, apart)
    width = max(len(r.prompt_ids) + len(r.response_ids) - 1 for r in rows)
    assert sizes[-1] < len(rows) * width / 2


def test_scores_are_written_once(tmp_path: Path):
    first = score(tmp_path, teacher())
    files = {f.name: f.stat().st_mtime_ns for f in tmp_path.iterdir() if f.suffix == ".arrow"}
    second = score(tmp_path, teacher())
    assert {
        f.name: f.stat().st_mtime_ns for f in tmp_path.iterdir() if f.suffix == ".arrow"
    } == files
    assert len(first) == len(second) == len(ROWS)
    assert {row.prompt_ids for row in second.rows(source="score")} == {r.prompt_ids for r in ROWS}
    assert not second.rows(source="rollout")


def test_rows_are_packed_to_the_right():
    laid = pack(ROWS[:3], pad_id=1)
    assert laid.input_ids.tolist() == [
        [3, 4, 5, 9, 7, 1],
        [8, 30, 31, 12, 1, 1],
        [5, 5, 5, 5, 5, 5],
    ]
    assert laid.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [1] * 6]
    assert laid.row.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    assert laid.position.tolist() == [2, 3, 4, 0, 1, 2, 3, 5]


def test_rows_are_packed_to_the_left():
    laid = pack(ROWS[:3], pad_id=0, padding_side="left")
    assert laid.input_ids.tolist() == [
        [0, 3, 4, 5, 9, 7],
        [0, 0, 8, 30, 31, 12],
        [5, 5, 5, 5, 5, 5],
    ]
    assert laid.attention_mask.tolist() == [[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1] * 6]
    assert laid.row.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    assert laid.position.tolist() == [3, 4, 5, 2, 3, 4, 5, 5]
