"""How large each form of the benchmarks is, and where their things are."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.materials import Materials
from benchmarks.speed.protocol import ROOT, Worker


@dataclass(frozen=True)
class Form:
    """Sizes that differ between the forms; what the bars name is fixed in the other two.

    Attributes:
        batch: rows of a training step.
        tokens: of each row.
        repetitions: of a paired measurement.
        slow: of one with a method that takes a minute.
        vocabulary: scale of the vocabularies of what is measured alone.
        responses: to a prompt, in the scaling of prefix sharing.
        rollouts: prompts, responses to each, most new tokens.
        cache_rows: rows of the cache curves.
    """

    batch: int
    tokens: int
    repetitions: int
    slow: int
    vocabulary: float
    responses: tuple[int, ...]
    rollouts: tuple[int, int, int]
    cache_rows: int


FORMS = {
    # Whether it works; its numbers mean nothing.
    "tiny": Form(4, 64, 2, 1, 0.1, (1, 8), (2, 2, 8), 4),
    "short": Form(16, 256, 5, 3, 1.0, (1, 4, 8), (4, 8, 64), 16),
    "full": Form(16, 256, 15, 7, 1.0, (1, 2, 4, 8, 16), (8, 8, 128), 16),
}


@dataclass(frozen=True)
class Setting:
    """One run of a benchmark.

    Attributes:
        name: of the form.
        work: folder for materials, logs and raw results.
        peers: interpreter of the peers' environment.
        distillkit: a checkout of DistillKit, or None where its environment has it installed.
        threads: of every process.
    """

    name: str
    work: Path
    peers: Path
    distillkit: Path | None
    threads: int

    @property
    def form(self) -> Form:
        return FORMS[self.name]

    @property
    def materials(self) -> Materials:
        return Materials(self.work, self.form.batch, self.form.tokens)

    def worker(self, module: str, options: dict, *, label: str = "", peer: bool = False) -> Worker:
        """A worker of this run.

        Args:
            module: under ``benchmarks.speed.workers``.
            options: of the worker.
            label: of its log; the module's name by default.
            peer: whether it runs in the peers' environment.
        """
        return Worker(
            f"benchmarks.speed.workers.{module}",
            options,
            log=self.work / "logs" / f"{label or module}.log",
            python=self.peers if peer else Path(sys.executable),
            threads=self.threads,
            paths=(self.distillkit,) if peer and self.distillkit else (),
        )


DEFAULT_WORK = ROOT / "benchmarks" / ".work"
DEFAULT_PEERS = ROOT / "benchmarks" / ".peers" / "bin" / "python"
