"""Work begun before its turn: in order, no further ahead than asked, stopped when it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tdistill.teacher.ahead import made_ahead


def taken_from(count: int, taken: list[int]) -> Iterator[int]:
    for item in range(count):
        taken.append(item)
        yield item


@pytest.mark.parametrize("at_once", [1, 2, 5, 9])
def test_results_come_in_order_and_items_are_taken_in_time(at_once: int):
    taken: list[int] = []
    for place, (item, made) in enumerate(
        made_ahead(lambda x: x * x, taken_from(6, taken), at_once=at_once)
    ):
        assert (item, made) == (place, place * place)
        assert len(taken) <= min(6, place + at_once)
    assert taken == list(range(6))


def test_so_many_are_worked_on_beside_each_other():
    together = threading.Barrier(3, timeout=20)
    found = made_ahead(lambda x: together.wait() >= 0, iter(range(6)), at_once=3)
    assert [made for _, made in found] == [True] * 6


def test_a_failure_stops_the_others_and_is_raised():
    stopped = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            raise ValueError("broken")
        assert stopped.wait(20)  # would wait for ever, were it not told to stop
        return item

    with pytest.raises(ValueError, match="broken"):
        list(made_ahead(work, iter(range(4)), at_once=2, stop=stopped.set))
    assert stopped.is_set()


def test_who_wants_no_more_stops_the_others():
    stopped = threading.Event()
    found = made_ahead(
        lambda x: x == 0 or stopped.wait(20), iter(range(4)), at_once=2, stop=stopped.set
    )
    assert next(found) == (0, True)
    found.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert stopped.is_set()
