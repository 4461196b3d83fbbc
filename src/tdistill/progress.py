"""Progress of long work: a live bar on a terminal, a line a minute elsewhere, events for programs.

What is said goes through this file, so that one choice holds for all of it: words for people, only
what matters (``quiet``), or JSON lines (``json``).
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any, Literal

from tdistill.errors import printable

Manner = Literal["words", "quiet", "json"]

_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BETWEEN_EVENTS = 1.0
_chosen: dict[str, Manner] = {"manner": "words"}


def speak(manner: Manner) -> None:
    """Choose how everything is said from now on."""
    _chosen["manner"] = manner


def spoken() -> Manner:
    """How things are said."""
    return _chosen["manner"]


def tell(text: str, *, error: bool = False) -> None:
    """Print a line for people, which may repeat what a model or a file says.

    An error is always told. Where events are asked for, the text is one.
    """
    if spoken() == "json":
        emit("error" if error else "message", text=text)
    if error or spoken() == "words":
        print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def emit(event: str, **fields: Any) -> None:
    """Write an event as a line of JSON; nothing where words are asked for.

    Args:
        event: its kind.
        fields: what there is to say of it; numbers, texts, lists and mappings of them.
    """
    if spoken() == "json":
        told = {name: _number_or_none(value) for name, value in fields.items()}
        line = {"event": event, "time": round(time.time(), 3), **told}
        print(json.dumps(line), flush=True)  # ASCII, so nothing in it acts on a terminal


def _number_or_none(value: Any) -> Any:
    """JSON has no word for a number that is infinite or none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """Progress towards a known total.

    Args:
        label: what is being done.
        total: how much there is to do.
        unit: what is counted.
        done: how much of it was done before (a resumed run).
    """

    def __init__(self, label: str, total: int, unit: str = "", *, done: int = 0) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._start, self._first = time.monotonic(), done
        self._last = self._start
        self._bar, self._task = _terminal_bar(label, total, done)

    @property
    def rate(self) -> float:
        """How much a second, of what was not done before; 0 where nothing is known yet."""
        passed = time.monotonic() - self._start
        return (self.done - self._first) / passed if passed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until the total, at the rate so far."""
        return (self.total - self.done) / self.rate if self.rate else None

    def advance(self, count: int, note: str = "") -> None:
        """Say how much more is done."""
        self.update(self.done + count, note)

    def update(self, done: int, note: str = "") -> None:
        """Say how much is done by now."""
        self.done = done
        if self._bar is not None:
            rate = _per_time(self.rate) if self.rate else ""
            self._bar.update(self._task, completed=done, note=note, rate=rate)
            return
        now, finished = time.monotonic(), done >= self.total
        events = spoken() == "json"
        wait = _SECONDS_BETWEEN_EVENTS if events else _SECONDS_BETWEEN_LINES
        soon = now - self._last < wait
        if (soon and not finished) or (finished and not events):  # the stage says its end itself
            return
        self._last = now
        if events:
            self._emit(note)
        else:
            tell(self._line(note))

    def _line(self, note: str) -> str:
        left = self.seconds_left
        parts = [f"  {self.label}: {self.done} of {self.total} {self.unit}".rstrip()]
        parts += [_per_time(self.rate)] if self.rate else []
        parts += [] if left is None else [f"{duration(left)} left"]
        return ", ".join([*parts, note] if note else parts)

    def _emit(self, note: str) -> None:
        left = self.seconds_left
        emit(
            "progress",
            what=self.label,
            done=self.done,
            total=self.total,
            unit=self.unit,
            rate=round(self.rate, 6),
            seconds_left=None if left is None else round(left, 1),
            note=note,
        )

    def note(self, text: str) -> None:
        """A line that stays, for what must not be overlooked."""
        line = printable(f"  warning: {text}")
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        elif spoken() == "json":
            emit("warning", what=self.label, text=text)
        else:
            print(line, file=sys.stderr if spoken() == "quiet" else sys.stdout, flush=True)

    def close(self) -> None:
        """Finish: the bar stays as a line."""
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(7.25), duration(252), duration(7384)
        ('7.2 s', '4 min 12 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _per_time(rate: float) -> str:
    """A rate a second, in the time in which there is one or more.

    Example:
        >>> _per_time(2.5), _per_time(0.25), _per_time(0.001)
        ('2.5/s', '15/min', '3.6/h')
    """
    for seconds, unit in ((1, "s"), (60, "min")):
        if rate * seconds >= 1:
            return f"{rate * seconds:.3g}/{unit}"
    return f"{rate * 3600:.3g}/h"


def _terminal_bar(label: str, total: int, done: int) -> tuple[Any, Any]:
    if spoken() != "words" or not sys.stdout.isatty():
        return None, None
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar = Bar(*columns)
    bar.start()
    return bar, bar.add_task(label, total=total, completed=done, note="", rate="")


def quiet_libraries() -> None:
    """Turn off the bars and notes of transformers: our own progress is enough."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
