from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tdistill.errors import InvalidValueError
from tdistill.evidence.rows import Row
from tdistill.training.config import ReplayConfig
from tdistill.training.replay import BufferedSource, Entry, ReplayBuffer
from world import cached, live, mixed_rows


def entries(count: int, *, born: int, first: int = 0) -> list[Entry]:
    """Different responses of different lengths, with the live teacher's evidence."""
    rows = [
        Row((2 + i, 3), tuple(5 + (i + j) % 9 for j in range(1 + i % 4)), i % 2 == 0, "student")
        for i in range(first, first + count)
    ]
    behaviour = [tuple(-0.1 * (j + 1) for j in range(len(r.response_ids))) for r in rows]
    rows = [
        Row(r.prompt_ids, r.response_ids, r.ended, r.source, b)
        for r, b in zip(rows, behaviour, strict=True)
    ]
    return [Entry(row, live().evidence([row]), born) for row in rows]


def filled(**config: int) -> ReplayBuffer:
    buffer = ReplayBuffer(ReplayConfig(refresh_every=1, **config))
    for update in range(4):
        buffer.add(entries(3, born=update, first=3 * update), update=update)
    return buffer


def test_the_oldest_go_first_when_there_are_too_many() -> None:
    buffer = filled(capacity=7, max_age=100)
    assert [e.born for e in buffer.entries] == [1, 2, 2, 2, 3, 3, 3]


def test_none_is_used_beyond_its_age_limit() -> None:
    buffer = filled(max_age=2)
    assert {e.born for e in buffer.entries} == {1, 2, 3}
    assert {r.prompt_ids[0] - 2 for r in buffer.draw(99, update=3, seed="s")} == set(range(3, 12))
    assert {r.prompt_ids[0] - 2 for r in buffer.draw(99, update=5, seed="s")} == {9, 10, 11}
    assert buffer.draw(5, update=6, seed="s") == []


def test_draws_hold_each_response_once_before_any_twice_and_follow_the_seed() -> None:
    buffer = filled(max_age=50)
    drawn = buffer.draw(12, update=3, seed="a")
    assert len(set(drawn)) == 12
    assert len(set(buffer.draw(20, update=3, seed="a"))) == 12
    assert drawn == buffer.draw(12, update=3, seed="a")
    assert drawn != buffer.draw(12, update=3, seed="b")
    assert ReplayBuffer(ReplayConfig()).draw(3, update=0, seed="a") == []


def test_saved_and_loaded_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    buffer, other = filled(), ReplayBuffer(ReplayConfig())
    buffer.save(tmp_path / "b.safetensors")
    other.load(tmp_path / "b.safetensors")
    assert len(other) == 12
    for one, two in zip(buffer.entries, other.entries, strict=True):
        assert (one.row, one.row.source, one.row.behaviour, one.born) == (
            two.row,
            two.row.source,
            two.row.behaviour,
            two.born,
        )
        mine, loaded = one.evidence.named_tensors(), two.evidence.named_tensors()
        assert all(mine[name].equal(loaded[name]) for name in mine)
    assert buffer.draw(5, update=3, seed="x") == other.draw(5, update=3, seed="x")
    empty = ReplayBuffer(ReplayConfig())
    empty.save(tmp_path / "e.safetensors")
    other.load(tmp_path / "e.safetensors")
    assert len(other) == 0


def test_memory_is_the_bytes_of_the_evidence() -> None:
    buffer = filled()
    by_hand = sum(
        8 * len(e.evidence.sets.ids)  # token ids
        + 4 * len(e.evidence.sets.ids)
        + 8 * (len(e.row.response_ids) + 1)
        + 8 * len(e.row.response_ids)
        for e in buffer.entries
    )
    assert buffer.nbytes == by_hand
    report = buffer.report(update=5)
    assert report["replay_rows"] == 12.0
    assert report["replay_age"] == 3.5


def test_own_responses_come_from_the_buffer_and_others_from_the_source(tmp_path: Path) -> None:
    buffer, rows = filled(), mixed_rows()
    own = [buffer.entries[4].row, buffer.entries[1].row]
    source = BufferedSource(buffer, cached(tmp_path, rows))
    mixture = [rows[0], own[0], rows[2], own[1]]
    found = source.evidence(mixture, set_top_p=0.6)
    expected = live().evidence(mixture, set_top_p=0.6)
    assert found.sets.ids.equal(expected.sets.ids)
    torch.testing.assert_close(found.log_normaliser, expected.log_normaliser)
    whole = source.evidence(mixture)
    assert len(whole.sets.ids) > len(found.sets.ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refresh_every": 0}, "refresh_every: expected at least 1"),
        ({"capacity": 0}, "capacity: expected at least 1"),
        ({"temperature": 0.0}, "temperature: expected a value above 0"),
        ({"refresh_every": 9, "max_age": 7}, "max_age: expected at least refresh_every - 1 = 8"),
    ],
)
def test_settings_that_run_dry_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        ReplayConfig(**changes)
