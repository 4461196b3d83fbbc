"""Limits of time and memory for a program of somebody else's that runs inside this one."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TICK = 0.05  # seconds between looks at what a program has taken
_MIB = 1 << 20


@contextmanager
def limited(seconds: float, mib: int) -> Iterator[None]:
    """Interrupt what takes longer, or more memory: in the main thread, where there is a timer.

    On Linux the system itself refuses memory beyond the limit, so that one operation cannot take
    more; elsewhere it is found a moment after it was taken. Other threads have no limits, nor has
    Windows, which has no timer.

    Args:
        seconds: that the program may run.
        mib: of memory beyond what the process has.

    Raises:
        TimeoutError: it took longer.
        MemoryError: it took more.
    """
    own_thread = threading.current_thread() is threading.main_thread()
    if (
        not own_thread
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_REAL)[0]
    ):
        yield
        return
    until, most = time.monotonic() + seconds, _peak_bytes() + mib * _MIB

    def look(number: int, frame: Any) -> None:
        late, large = time.monotonic() >= until, _peak_bytes() > most
        if late or large:
            signal.setitimer(signal.ITIMER_REAL, 0.0)  # once: what is unwound may take longer
            raise (
                TimeoutError(f"it did not end within {seconds:g} seconds") if late else MemoryError
            )

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, min(_TICK, seconds), _TICK)
    try:
        with _address_space(mib * _MIB):
            yield
    except MemoryError as error:
        raise MemoryError(f"it took more than {mib} MiB of memory") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _peak_bytes() -> int:
    """The most memory that the process has had."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _address_space(more: int) -> Iterator[None]:
    """Let the system refuse memory beyond what is taken now and ``more`` bytes; Linux alone does.

    What other threads take meanwhile counts, too: a program that is limited runs for milliseconds.
    """
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    lower = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *lower]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
