"""Rollouts, then training, for as long as asked, with the memory of the process: it must stay flat.

    .venv/bin/python benchmarks/endurance.py --minutes 60 --out endurance.json

Tiny random models, so that the loops turn as often as they can; half of the time for each. The
slope is that of a line through resident memory after the first fifth of a phase, when buffers have
grown to their size.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from tdistill.progress import quiet_libraries
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.teacher.rollouts import collect_rollouts
from tdistill.teacher.source import CachedTeacher
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import BellmanDistill
from tdistill.training.train import train_student
from tiny import VOCABULARY, tiny_lm

SECONDS_BETWEEN_LOOKS = 2.0
ROUND = 256  # prompts of a round of rollouts, updates of a run of training


@dataclass
class Endurance:
    """Keep rollouts and training going, and watch the memory."""

    minutes: float = 60.0
    """Of both phases together."""
    out: Path = Path("endurance.json")
    """What was seen."""


class Watch:
    """Resident memory of this process, looked at by a thread."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        page = 4096 / 2**20
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            self.seen.append((time.monotonic(), resident))

    def summary(self) -> dict[str, float]:
        """MiB: at the beginning and the end of the last four fifths, and a line through them."""
        kept = np.array(self.seen[len(self.seen) // 5 :])
        hours = (kept[:, 0] - kept[0, 0]) / 3600
        slope = float(np.polyfit(hours, kept[:, 1], 1)[0])
        return {"first_mib": kept[0, 1], "last_mib": kept[-1, 1], "slope_mib_per_hour": slope}


def prompts(number: int) -> list[tuple[int, ...]]:
    """Prompts of one round; each is asked once."""
    chance = np.random.default_rng(number)
    return [tuple(chance.integers(2, VOCABULARY, 1 + i % 9).tolist()) for i in range(ROUND)]


def roll(folder: Path, until: float) -> int:
    """Rounds of rollouts into caches that are thrown away; the last one stays."""
    teacher, number = tiny_lm("llama", scale=3.0), 0
    config = RolloutConfig(n=4, max_new_tokens=32, capture=CaptureConfig(0.9, None))
    while time.monotonic() < until or number == 0:
        shutil.rmtree(folder, ignore_errors=True)
        with CacheWriter(folder, identity_of(teacher, config.capture)) as writer:
            rounds = replace(config, seed=number)
            rows = sum(collect_rollouts(teacher, prompts(number), rounds, writer))
        number += 1
    return number * rows


def train(cache: Cache, checkpoints: Path, until: float) -> int:
    """Runs of training, one after the other, of one student."""
    student, rows, updates = tiny_lm("llama", seed=2, num_hidden_layers=1), cache.rows(), 0
    config = TrainConfig(steps=ROUND, batch_size=16, learning_rate=1e-4, save_steps=64)
    while time.monotonic() < until or updates == 0:
        shutil.rmtree(checkpoints, ignore_errors=True)
        student, _ = train_student(
            student,
            BellmanDistill(),
            rows,
            replace(config, seed=updates),
            checkpoints=checkpoints,
            vocabulary_size=VOCABULARY,
            source=CachedTeacher(cache),
        )
        updates += ROUND
    return updates


def main() -> None:
    options = tyro.cli(Endurance)
    quiet_libraries()
    torch.manual_seed(0)
    half = 30.0 * options.minutes
    found: dict[str, Any] = {"minutes": options.minutes}
    with tempfile.TemporaryDirectory() as place:
        with Watch() as watch:
            responses = roll(Path(place) / "cache", time.monotonic() + half)
        found["rollouts"] = {"responses": responses, **watch.summary()}
        with Watch() as watch:
            cache = Cache(Path(place) / "cache")
            updates = train(cache, Path(place) / "checkpoints", time.monotonic() + half)
        found["training"] = {"updates": updates, **watch.summary()}
    options.out.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
