"""The order of the data where the responses of a prompt are to share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from tdistill.models.layout import Tokens


class PromptSampler(Sampler[int]):
    """Every row once an epoch; prompts in a random order, the responses of each one together.

    A row is as likely to be in an update as under uniform draws, so the expected gradient is the
    same; its variance is not smaller, since an update sees fewer prompts.

    Args:
        rows: prompts with responses.
        seed: with the number of the epoch, decides the order.
    """

    def __init__(self, rows: Sequence[Tokens], seed: int) -> None:
        self.seed, self.epoch = seed, 0
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row.prompt_ids, []).append(i)
        self.groups = list(groups.values())

    def __len__(self) -> int:
        """Number of rows."""
        return sum(len(group) for group in self.groups)

    def __iter__(self) -> Iterator[int]:
        """Indices of the rows in the order of this epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for number in torch.randperm(len(self.groups), generator=generator).tolist():
            yield from self.groups[number]
        self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; the training loop does."""
        self.epoch = epoch
