"""Running means over updates: what an objective needs to know of more than the batch at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RUNNING_FILE = "running.safetensors"
Sums = Mapping[str, tuple[Tensor, Tensor]]
"""Sums of values and of their weights by name: of one number, or of one for each token."""


class RunningMeans:
    """Exponential means of sums and weights, moved once an update.

    An objective reads the means of the updates before the present one, so that its gradient does
    not depend on how an update is cut into parts or spread over processes.

    Args:
        decay: weight of what was known at each update, in [0, 1).
    """

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = decay
        self._known: dict[str, Tensor] = {}
        self._new: dict[str, Tensor] = {}

    def observe(self, sums: Sums) -> None:
        """Take in the sums of a part of the present update."""
        for name, pair in sums.items():
            new = torch.stack(pair).detach()
            self._new[name] = self._new[name] + new if name in self._new else new

    def update(self, total: Callable[[Tensor], Tensor]) -> None:
        """End the present update.

        Args:
            total: adds up a tensor over the processes of the run.
        """
        for name, new in self._new.items():
            old = self.decay * self._known[name] if name in self._known else 0.0
            self._known[name] = old + total(new)
        self._new = {}

    def means(self) -> dict[str, Tensor]:
        """Means so far by name, one more observation of 0 among them: seen once is no rule."""
        return {name: sums / (weights + 1.0) for name, (sums, weights) in self._known.items()}

    def save(self, folder: Path) -> None:
        """Write them beside a checkpoint."""
        save_file({n: t.contiguous() for n, t in self._known.items()}, folder / RUNNING_FILE)

    def load(self, folder: Path, device: torch.device) -> None:
        """Read those of a checkpoint."""
        self._known = {n: t.to(device) for n, t in load_file(folder / RUNNING_FILE).items()}
