"""Requests to another process and its answers, one JSON object a line. Torch-free.

The parent asks for one step at a time, so that methods of different environments take turns. A
worker that waits reads from a pipe and uses no processor time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class WorkerError(RuntimeError):
    """A worker that ended instead of answering."""


class Worker:
    """A process that answers requests.

    Args:
        module: what it runs, as ``python -m``.
        options: read by the worker before its first answer.
        log: file for whatever it prints.
        python: interpreter of its environment.
        threads: it may use.
        paths: further folders to import from.
    """

    def __init__(
        self,
        module: str,
        options: Mapping[str, Any],
        *,
        log: Path,
        python: Path = Path(sys.executable),
        threads: int = 2,
        paths: tuple[Path, ...] = (),
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.module, self.log = module, log
        # Idle threads that spin would slow whoever's turn it is.
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(p) for p in paths] + [p for p in [os.environ.get("PYTHONPATH")] if p]
            ),
        }
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(python), "-m", module],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self.ready = self.ask(options)
        except WorkerError:
            self.__exit__()
            raise

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            WorkerError: if the worker has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            raise WorkerError(
                f"{self.module}: expected an answer, found that it ended with status {code} "
                f"(-9: out of memory); its last words, from {self.log}:\n{tail}"
            )
        return json.loads(line)

    def step(self) -> float:
        """Seconds of one step."""
        self.last = self.ask({"do": "step"})
        return float(self.last["seconds"])

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Channel:
    """The worker's end: the first request holds its options; no further request means stop."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes to the log
        self.options = self.receive() or {}

    def receive(self) -> dict[str, Any] | None:
        """The next request; None when there will be none."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def reply(self, answer: Mapping[str, Any]) -> None:
        """Answer the last request."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def serve(channel: Channel, answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Answer requests by a function until there are no more."""
    while (request := channel.receive()) is not None:
        channel.reply(answer(request))
