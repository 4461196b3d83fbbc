"""Progress of long work: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tdistill.errors import printable

_SECONDS_BETWEEN_LINES = 20.0


def tell(text: str, *, error: bool = False) -> None:
    """Print a line for people, which may repeat what a model or a file says."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


class Progress:
    """Progress towards a known total.

    Args:
        label: what is being done.
        total: how much there is to do.
        done: how much of it was done before (a resumed run).
    """

    def __init__(self, label: str, total: int, *, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._start, self._first = time.monotonic(), done
        self._last_line = self._start
        self._bar, self._task = _terminal_bar(label, total, done)

    def update(self, done: int, note: str = "") -> None:
        """Say how much is done by now."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES and done < self.total:
            self._last_line = now
            rate = max(done - self._first, 1) / (now - self._start)
            left = (self.total - done) / rate
            print(f"  {self.label}: {done} of {self.total}, {left:.0f} s left  {note}", flush=True)

    def note(self, text: str) -> None:
        """A line that stays, for what must not be overlooked."""
        if self._bar is not None:
            line = printable(f"  warning: {text}")
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            tell(f"  warning: {text}")

    def close(self) -> None:
        """Finish: the bar stays as a line."""
        if self._bar is not None:
            self._bar.stop()


def _terminal_bar(label: str, total: int, done: int) -> tuple[Any, Any]:
    if not sys.stdout.isatty():
        return None, None
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar = Bar(*columns)
    bar.start()
    return bar, bar.add_task(label, total=total, completed=done, note="")


def quiet_libraries() -> None:
    """Turn off the bars and notes of transformers: our own progress is enough."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
