"""Commands in several processes on the CPU, as `torchrun` starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from pipeline import Finished
from tdistill.models.language_model import load

ROOT = Path(__file__).parent.parent
TWO = ("--standalone", "--nproc_per_node", 2)
_LIMIT = 400.0  # seconds of a command
_MARK = "TDISTILL_TEST_LAUNCH"


class Launch:
    """A command that `torchrun` runs in each of several processes.

    Args:
        words: what follows ``torchrun`` and its options.
        options: of `torchrun`; None runs the command as it is, without a launcher.
        **variables: further ones of the environment.
    """

    def __init__(
        self,
        words: Sequence[object],
        options: Sequence[object] | None = TWO,
        **variables: str,
    ) -> None:
        launcher = [] if options is None else ["-m", "torch.distributed.run", *options]
        started = [sys.executable, *launcher, *words]
        paths = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        own |= {_MARK: uuid4().hex}
        self.mark = f"{_MARK}={own[_MARK]}"
        self.process = subprocess.Popen(
            list(map(str, started)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **own, **variables},
        )

    def finish(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code and all that was said."""
        try:
            said, _ = self.process.communicate(timeout=_LIMIT)
        finally:
            self.kill()
        return self.process.returncode, said

    def wait_for(self, path: Path) -> None:
        """Until a file or a folder is there."""
        until = time.monotonic() + _LIMIT
        while not path.exists():
            assert self.process.poll() is None, self.finish()[1]
            assert time.monotonic() < until, path
            time.sleep(0.02)

    def kill_rank(self, rank: int) -> None:
        """What happens to a process of a machine without memory: kill -9 of one of them."""
        (number,) = self._processes(f"RANK={rank}")
        os.kill(number, signal.SIGKILL)

    def kill(self) -> None:
        """The whole launch at once, as when a machine loses its power."""
        for number in self._processes():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.communicate()

    def _processes(self, *variables: str) -> list[int]:
        """Those of this launch that have all of some variables; each has a session of its own."""
        wanted, found = {text.encode() for text in (self.mark, *variables)}, []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted <= set((place / "environ").read_bytes().split(b"\0")):
                    found.append(int(place.name))
        return found


def assert_same_students(out: Path, alone: Finished) -> None:
    """Whole models that anybody can load, with the weights of one process."""
    for name in ("models/start", "models/seqkd", "student"):
        found, expected = load(out / name), load(alone.folder / name)
        pairs = zip(found.model.parameters(), expected.model.parameters(), strict=True)
        assert all((one - two).abs().max() < 1e-6 for one, two in pairs)


def launched(
    words: Sequence[object], options: Sequence[object] | None = TWO, **variables: str
) -> str:
    """Run a command to its good end; returns what it said."""
    code, said = Launch(words, options, **variables).finish()
    assert code == 0, said
    return said
