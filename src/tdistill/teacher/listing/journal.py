"""Answers that have come, kept until their shard is written: a stop loses none of them."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path

from tdistill.teacher.listing.steps import Answer, Step


class Journal:
    """The answers to one unit of work, a line each, in the order in which they came.

    Args:
        path: the file; its folder is created when the first answer comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def read(self) -> dict[int, Answer]:
        """The answers by their place in the unit; a line that was cut off counts for nothing."""
        found: dict[int, Answer] = {}
        if not self.path.exists():
            return found
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                place, answer = json.loads(line)
                steps = tuple(
                    Step(tuple(s["ids"]), tuple(s["log_probs"]), s["chosen"])
                    for s in answer["steps"]
                )
                found[place] = Answer(tuple(answer["ids"]), answer["ended"], steps)
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def add(self, place: int, answer: Answer) -> None:
        """Keep one answer."""
        line = json.dumps([place, asdict(answer)]) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)

    def remove(self) -> None:
        """Forget them: their shard is written."""
        self.path.unlink(missing_ok=True)
