"""Paired repetitions; medians with their spread; memory of this process. Torch-free."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Step = Callable[[], float]
"""Does one step of a method and returns its seconds."""

MIB = float(1 << 20)


@dataclass(frozen=True)
class Spread:
    """A median with the quartiles around it (of fewer than four values: the least and most)."""

    value: float
    low: float
    high: float

    def json(self) -> dict[str, Any]:
        return {"value": self.value, "spread": [self.low, self.high]}


def spread_of(values: Sequence[float]) -> Spread:
    """Median and quartiles.

    Example:
        >>> spread_of([3.0, 1.0, 2.0])
        Spread(value=2.0, low=1.0, high=3.0)
        >>> spread_of([1.0, 2.0, 3.0, 4.0, 5.0])
        Spread(value=3.0, low=2.0, high=4.0)
    """
    middle = statistics.median(values)
    if len(values) < 4:
        return Spread(middle, min(values), max(values))
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Median of the ratios of values that were measured side by side.

    Example:
        >>> ratio([2.0, 40.0], [1.0, 10.0])
        Spread(value=3.0, low=2.0, high=4.0)
    """
    return spread_of([a / b for a, b in zip(above, below, strict=True)])


def paired(
    methods: Mapping[str, Step], repetitions: int, *, warm_up: int = 1, note: str = ""
) -> dict[str, list[float]]:
    """Seconds of every method, the methods taking turns, so that slow minutes hit all alike.

    Every second round goes backwards: no method always follows the same other.
    """
    for step in list(methods.values()) * warm_up:
        step()
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_number in range(repetitions):
        names = list(methods)[:: -1 if round_number % 2 else 1]
        for name in names:
            seconds[name].append(methods[name]())
        last = ", ".join(f"{name} {times[-1]:.3g}" for name, times in seconds.items())
        print(f"    {note} {round_number + 1} of {repetitions}: {last} s", flush=True)
    return seconds


def timed(work: Callable[[], Any]) -> Step:
    """A step that is the whole of a function.

    Example:
        >>> timed(lambda: None)() < 1.0
        True
    """

    def step() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return step


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The memory that this process holds now; where the system does not say, the most so far."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return peak_bytes()
    return int(status.read_text().split()[1]) * resource.getpagesize()
