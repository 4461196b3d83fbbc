"""Work that waits for somebody else, begun before it is its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def made_ahead(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    at_once: int,
    stop: Callable[[], object] = lambda: None,
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what a function makes of it, in order; some are worked on at a time.

    Args:
        function: called in other threads where ``at_once`` is above 1.
        items: taken in this thread, no more than ``at_once`` before their turn.
        at_once: how many.
        stop: makes calls that are under way end soon; after an error, or when nobody wants more.

    Example:
        >>> list(made_ahead(lambda x: x * x, iter([1, 2, 3]), at_once=2))
        [(1, 1), (2, 4), (3, 9)]
    """
    if at_once == 1:
        yield from ((item, function(item)) for item in items)
        return
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) == at_once:
                    first, made = waiting.popleft()
                    yield first, made.result()
            while waiting:
                first, made = waiting.popleft()
                yield first, made.result()
        except BaseException:
            stop()
            for _, made in waiting:
                made.cancel()
            raise
