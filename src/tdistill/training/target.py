"""The target network: an exponential moving average of the student, for V(s') (method.md, 4)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tdistill.training.sharded import whole

_FILE = "target.safetensors"


class TargetNetwork:
    """An averaged copy of a model, never trained itself; whole in every process.

    Args:
        model: the student.
        decay: weight of the old average at each update, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Any) -> None:
        """``average = decay average + (1 - decay) student``, after an optimiser update."""
        student = getattr(model, "module", model)
        for mine, theirs in zip(self.model.parameters(), student.parameters(), strict=True):
            mine.lerp_(whole(theirs).to(mine.device, mine.dtype), 1.0 - self.decay)

    def save(self, folder: Path) -> None:
        """Write the average next to a checkpoint."""
        save_file({n: p.contiguous() for n, p in self.model.named_parameters()}, folder / _FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read the average of a checkpoint."""
        weights = load_file(folder / _FILE)
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])
