"""A limit of time for a program of somebody else's that runs inside this one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def at_most_seconds(limit: float) -> Iterator[None]:
    """Interrupt what takes longer: in the main thread, where the system has a timer that is free.

    Raises:
        TimeoutError: it did.
    """
    own_thread = threading.current_thread() is threading.main_thread()
    if (
        not own_thread
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_REAL)[0]
    ):
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise TimeoutError(f"it did not end within {limit:g} seconds")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
