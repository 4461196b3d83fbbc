"""Where ``benchmarks.gpu`` measures, how much, and how things are timed there."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu_models import Sizes
from benchmarks.speed.measure import MIB, paired, spread_of
from benchmarks.speed.protocol import ROOT

LONG = Sizes(576, 30, 10, 49_152, rows=32, prompt=128, response=128, tokens=64, repetitions=7)
SHORT = Sizes(48, 3, 2, 512, rows=4, prompt=12, response=8, tokens=6, repetitions=1)


@dataclass(frozen=True)
class Setting:
    """Where and how much is measured.

    Attributes:
        device: of all of it.
        sizes: of models and rows.
        work: folder for models and logs.
        tests: whether the tests are run.
    """

    device: torch.device
    sizes: Sizes
    work: Path
    tests: bool

    @property
    def queues(self) -> bool:
        """Whether the device is only given work, and must be waited for to be timed."""
        return self.device.type == "cuda"

    def timed(self, work: Callable[[], object]) -> Callable[[], float]:
        """A step that is the whole of a function, on the device too."""

        def step() -> float:
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            return time.perf_counter() - start

        return step

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.queues:
            torch.cuda.synchronize(self.device)

    def compare(self, forms: dict[str, Callable[[], object]], note: str) -> dict[str, Any]:
        """Seconds of forms that take turns, and the most memory of each over what was there."""
        steps = {name: self.timed(work) for name, work in forms.items()}
        seconds = paired(steps, self.sizes.repetitions, warm_up=2, note=note)
        return {
            name: {"seconds": spread_of(seconds[name]).json(), **self._memory(work)}
            for name, work in forms.items()
        }

    def _memory(self, work: Callable[[], object]) -> dict[str, float]:
        if not self.queues:
            return {}
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        return {"peak_mib": (torch.cuda.max_memory_allocated(self.device) - before) / MIB}


def machine(setting: Setting) -> dict[str, Any]:
    """What was measured on, and with."""
    found: dict[str, Any] = {"python": platform.python_version(), "device": str(setting.device)}
    for name in ("torch", "transformers", "triton", "accelerate", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if setting.queues:
        card = torch.cuda.get_device_properties(setting.device)
        found |= {"card": card.name, "memory_gib": round(card.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "capability": f"{card.major}.{card.minor}"}
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return found | {"commit": commit.stdout.strip() or "unknown"}
