"""Sampled tails: off the set, in the teacher's proportions, the same numbers every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.core import TopPSets, top_p_sets
from tdistill.errors import CacheError, InvalidValueError
from tdistill.evidence.evidence import concatenate, take_responses, take_steps
from tdistill.evidence.tail import Tail
from tdistill.teacher import rollouts
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.rounding import round_log_probs
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.rollouts import sample_unit
from tdistill.teacher.scoring import collect_scores
from tdistill.teacher.source import CachedTeacher, LiveTeacher
from tdistill.teacher.tail_sampling import sample_tail
from teaching import CAPTURE, IDENTITY, assert_close, contents, record, roll, teacher

N = 6
WITH_TAIL = replace(CAPTURE, captured_top_p=0.6, tail_samples=N)


def parts(tail: Tail | None) -> list[Tensor]:
    assert tail is not None
    return [tail.ids, tail.log_probs, tail.counts, tail.offsets]


def assert_same(found: Tail | None, expected: Tail | None) -> None:
    for a, b in zip(parts(found), parts(expected), strict=True):
        assert torch.equal(a, b)


def distributions(rows: int = 90, vocabulary: int = 40) -> tuple[Tensor, TopPSets]:
    """More rows than are summed at once; the fifth has all its mass in its set."""
    noise = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(3))
    noise[4:5, 1:] = float("-inf")
    log_probs = (2 * noise).log_softmax(-1)
    return log_probs, top_p_sets(log_probs, 0.7)


def test_tokens_are_off_the_set_and_counted():
    log_probs, sets = distributions()
    uniform = torch.rand(90, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tail = sample_tail(log_probs, sets, uniform)
    counts = torch.zeros(90).index_add(0, tail.step, tail.counts.float())
    assert counts.tolist() == [N if t != 4 else 0 for t in range(90)]
    assert torch.equal(tail.log_probs, log_probs[tail.step, tail.ids])
    for t in range(90):
        ids = tail.ids[tail.offsets[t] : tail.offsets[t + 1]].tolist()
        assert ids == sorted(set(ids))
        assert not set(ids) & set(sets.row(t)[0].tolist())
        alone = sample_tail(
            log_probs[t : t + 1], top_p_sets(log_probs[t : t + 1], 0.7), uniform[t:][:1]
        )
        assert alone.ids.tolist() == ids


def test_frequencies_are_those_of_the_teacher_off_the_set():
    log_probs, sets = distributions(1, 12)
    draws = 200_000
    grid = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws)[None]
    tail = sample_tail(log_probs, sets, grid)
    off = log_probs[0].exp().double()
    off[sets.ids] = 0.0
    found = torch.zeros(12, dtype=torch.float64)
    found[tail.ids] = tail.counts.double() / draws
    torch.testing.assert_close(found, off / off.sum(), atol=2 / draws, rtol=0)


@pytest.mark.parametrize("extreme", [0.0, 1.0 - 2**-53])
def test_a_token_without_mass_is_never_drawn(extreme: float):
    log_probs = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]]).log()
    inside = TopPSets(torch.tensor([1]), torch.tensor([0.5]).log(), torch.tensor([0, 1]))
    uniform = torch.tensor([[extreme]], dtype=torch.float64)
    assert sample_tail(log_probs, inside, uniform).ids.tolist() == [3 if extreme == 0.0 else 4]


def test_rollouts_keep_tails_and_change_no_response(tmp_path: Path):
    plain = roll(tmp_path / "plain", capture=replace(WITH_TAIL, tail_samples=0))
    cache = roll(tmp_path / "tail", capture=WITH_TAIL)
    rows = cache.rows()
    assert rows == plain.rows()
    assert_close(cache.evidence(rows), plain.evidence(rows))
    assert plain.evidence(rows).tail is None
    tail = cache.evidence(rows).tail
    assert tail is not None
    whole = LiveTeacher(teacher(), CaptureConfig(1.0, None)).evidence(rows).sets
    inside = cache.evidence(rows).sets
    for t in range(len(whole)):
        part = slice(int(tail.offsets[t]), int(tail.offsets[t + 1]))
        ids, log_probs = whole.row(t)
        known = dict(zip(ids.tolist(), log_probs.tolist(), strict=True))
        assert int(tail.counts[part].sum()) == N
        assert not set(tail.ids[part].tolist()) & set(inside.row(t)[0].tolist())
        for token, value in zip(
            tail.ids[part].tolist(), tail.log_probs[part].tolist(), strict=True
        ):
            assert value == pytest.approx(known[token], rel=2.0**-10, abs=1e-5)


def test_interrupted_and_resumed_is_the_same_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    roll(tmp_path / "straight", capture=WITH_TAIL)
    done: list[int] = []

    def stop(*args: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args[1].seed)
        return sample_unit(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rollouts, "sample_unit", stop)
        roll(tmp_path / "broken", capture=WITH_TAIL)
    roll(tmp_path / "broken", capture=WITH_TAIL)
    assert contents(tmp_path / "broken") == contents(tmp_path / "straight")


def test_scores_draw_by_the_row_whatever_the_batch(tmp_path: Path):
    rows = roll(tmp_path / "rows").rows()
    live = LiveTeacher(teacher(), WITH_TAIL)
    together = live.evidence(rows)
    lengths = [len(row.response_ids) for row in rows]
    for row, part in zip(rows, take_responses(together, lengths), strict=True):
        alone = live.evidence([row]).tail
        assert alone is not None
        assert torch.equal(parts(alone)[0], parts(part.tail)[0])
        assert torch.equal(alone.counts, parts(part.tail)[2])
    with CacheWriter(tmp_path / "scores", identity_of(teacher(), WITH_TAIL)) as writer:
        assert sum(collect_scores(live, rows, writer, batch_size=4)) == len(rows)
    cached = CachedTeacher(Cache(tmp_path / "scores")).evidence(rows)
    assert torch.equal(parts(cached.tail)[0], parts(together.tail)[0])
    assert torch.equal(parts(cached.tail)[2], parts(together.tail)[2])


def test_steps_are_taken_and_laid_end_to_end_with_their_tails():
    log_probs, sets = distributions(8)
    uniform = torch.rand(8, N, generator=torch.Generator().manual_seed(5))
    tail = sample_tail(log_probs, sets, uniform)
    normaliser = torch.zeros(8)
    evidence = replace(record((2,), (3,) * 8).evidence, sets=sets, log_normaliser=normaliser)
    whole = replace(evidence, tail=tail)
    chosen = torch.tensor([7, 4, 0, 7])
    taken = take_steps(whole, chosen).tail
    again = sample_tail(log_probs[chosen], take_steps(whole, chosen).sets, uniform[chosen])
    assert_same(taken, again)
    assert_same(concatenate(take_responses(whole, [3, 1, 4])).tail, tail)
    assert concatenate([whole, evidence]).tail is None  # one part without: nothing to rely on
    assert_same(whole.to("cpu").tail, tail)


def test_cut_sets_lose_their_tail(tmp_path: Path):
    cache = roll(tmp_path, capture=WITH_TAIL)
    rows = cache.rows()
    assert cache.evidence(rows, set_top_p=0.5).tail is None
    assert LiveTeacher(teacher(), WITH_TAIL).evidence(rows, set_top_p=0.5).tail is None


def test_a_cache_without_tails_takes_none_and_one_with_tails_needs_them(tmp_path: Path):
    bare = record((3, 4), (9, 8, 1))
    with (
        CacheWriter(tmp_path, replace(IDENTITY, tail_samples=N)) as writer,
        pytest.raises(CacheError, match="expected 6 tail samples a step, found a response without"),
    ):
        writer.write("a", [bare])


def test_rounded_and_within_one_byte():
    assert CaptureConfig(tail_samples=255).tail_samples == 255
    for wrong in (-1, 256):
        with pytest.raises(InvalidValueError, match=f"from 0 to 255, found {wrong}"):
            CaptureConfig(tail_samples=wrong)
    live = LiveTeacher(teacher(), WITH_TAIL)
    tail = live.evidence([record((3,), (4, 5, 6)).row]).tail
    assert tail is not None
    assert torch.equal(round_log_probs(tail.log_probs), tail.log_probs)
