from __future__ import annotations

import time

import pytest
import torch
from benchmarks.speed.workers.ours import Clock, RandomTeacher, rows_of


def test_a_part_has_its_own_time_without_the_parts_inside_it():
    clock = Clock()
    inner = clock.wrap("inner", lambda: time.sleep(0.02))
    outer = clock.wrap("outer", lambda: (inner(), inner(), time.sleep(0.01)))
    start = time.perf_counter()
    outer()
    whole = time.perf_counter() - start
    seconds = clock.take()
    assert seconds["inner"] >= 0.04
    assert 0.01 <= seconds["outer"] < whole - 0.03
    assert sum(seconds.values()) == pytest.approx(whole, abs=2e-3)
    assert clock.take() == {}


def test_a_part_that_fails_is_counted_and_leaves_the_clock_usable():
    clock = Clock()
    with pytest.raises(ZeroDivisionError):
        clock.wrap("outer", clock.wrap("inner", lambda: 1 / 0))()
    assert set(clock.take()) == {"inner", "outer"}
    assert clock.wrap("again", lambda: 5)() == 5


def test_random_rows_share_their_prompts_n_at_a_time():
    shape = {"rows": 6, "n": 3, "prompt": 5, "response": 4}
    rows = rows_of({"random_rows": shape}, vocabulary=50)
    assert [len(row.prompt_ids) for row in rows] == [5] * 6
    assert [len(row.response_ids) for row in rows] == [4] * 6
    assert len({row.prompt_ids for row in rows}) == 2
    assert len({row.response_ids for row in rows}) == 6
    assert max(max(row.prompt_ids + row.response_ids) for row in rows) < 50


def test_random_sets_are_sets_of_a_teachers_sizes():
    rows = rows_of({"random_rows": {"rows": 20, "n": 1, "prompt": 2, "response": 100}}, 5003)
    found = RandomTeacher(5003).evidence(rows)
    sizes = found.sets.sizes
    assert len(sizes) == 2000
    assert 2 <= float(sizes.median()) <= 6
    assert 12 <= float(sizes.float().mean()) <= 30
    for t in range(0, 2000, 50):
        ids, log_probs = found.sets.row(t)
        assert len(ids.unique()) == len(ids)
        assert float(log_probs.exp().sum()) == pytest.approx(0.8)
    assert int(found.sets.ids.max()) < 5003
    again = RandomTeacher(5003).evidence(rows)
    assert torch.equal(again.sets.ids, found.sets.ids)
