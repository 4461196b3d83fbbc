"""Scoring responses of any origin into a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tdistill.evidence.rows import Row
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.verification import verify_cache
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.scoring import collect_scores
from tdistill.teacher.source import CachedTeacher, LiveTeacher
from teaching import CAPTURE, END, assert_close, contents, roll, teacher

ROWS = [
    Row((3, 4, 5), (6, 7, END), ended=True),
    Row((9,), (33, 12, 60, 2), ended=False),
    Row((3, 4, 5), (8,), ended=False),
    Row((10, 11, 12, 13, 14, 15), (40, END), ended=True),
    Row((20, 21), (22, 23, 24, 25, 26), ended=False),
]


def score(folder: Path, rows: list[Row] | None = None, **options: int) -> list[int]:
    live = LiveTeacher(teacher(), CAPTURE)
    with CacheWriter(folder, identity_of(teacher(), CAPTURE)) as writer:
        return list(collect_scores(live, rows or ROWS, writer, **options))


def test_the_cache_serves_what_was_scored(tmp_path: Path):
    assert score(tmp_path, batch_size=2, batches_per_shard=1) == [2, 2, 1]
    cache = Cache(tmp_path)
    assert sorted(map(repr, cache.rows())) == sorted(map(repr, ROWS))
    assert cache.rows(source="score") == cache.rows()
    for top_p in (None, 0.5):
        found = CachedTeacher(cache).evidence(ROWS, set_top_p=top_p)
        assert_close(found, LiveTeacher(teacher(), CAPTURE).evidence(ROWS, set_top_p=top_p))
    assert verify_cache(cache) == []


def test_its_numbers_are_the_teachers_own(tmp_path: Path):
    score(tmp_path)
    for row in ROWS:
        found = Cache(tmp_path).evidence([row])
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        with torch.no_grad():
            logits = teacher().model(ids).logits[0, len(row.prompt_ids) - 1 : -1]
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(1, torch.tensor(row.response_ids)[:, None]).squeeze(1)
        torch.testing.assert_close(found.action_log_prob, chosen, rtol=0, atol=0.004)
        torch.testing.assert_close(found.log_normaliser, logits.logsumexp(-1), rtol=0, atol=0.001)
        for t in range(len(row.response_ids)):
            members, own = found.sets.row(t)
            torch.testing.assert_close(own, log_probs[t, members], rtol=0, atol=0.004)
            assert own.double().exp().sum() >= 0.9 - 1e-3


def test_scores_are_added_to_rollouts(tmp_path: Path):
    before = roll(tmp_path)
    sampled = before.rows()
    kept = {name: data for name, data in contents(tmp_path).items() if name.endswith(".arrow")}
    score(tmp_path)
    cache = Cache(tmp_path)
    assert len(cache) == len(before) + len(ROWS)
    assert cache.rows(source="rollout") == sampled
    assert len(cache.evidence(ROWS).log_normaliser) == sum(len(r.response_ids) for r in ROWS)
    assert {name: contents(tmp_path)[name] for name in kept} == kept


def test_nothing_is_scored_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    score(tmp_path, batch_size=2, batches_per_shard=1)
    before = contents(tmp_path)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(LiveTeacher, "evidence", refuse)
    assert score(tmp_path, batch_size=2, batches_per_shard=1) == [2, 2, 1]
    assert contents(tmp_path) == before


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path):
    different = [row for row in ROWS if row != ROWS[2]]  # no two of one length and prompt
    score(tmp_path / "a", different)
    score(tmp_path / "b", different[::-1])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
