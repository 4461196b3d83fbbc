"""Which rows an update is made of: a function of the seed and its number, not of the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, islice

import torch
from torch.utils.data import Sampler

from tdistill.models.layout import Tokens

Order = Callable[[int], list[int]]
"""The indices of all rows in the order of an epoch, given its number."""


def uniform_order(rows: int, seed: int) -> Order:
    """Every row once an epoch, any order as likely as any other.

    Args:
        rows: how many there are.
        seed: with the number of the epoch, decides the order.

    Example:
        >>> order = uniform_order(4, seed=0)
        >>> sorted(order(0)), order(0) == order(0), order(0) == order(1)
        ([0, 1, 2, 3], True, False)
    """
    return lambda epoch: _permutation(rows, seed + epoch)


def prompt_order(rows: Sequence[Tokens], seed: int) -> Order:
    """Every row once an epoch; prompts in a random order, the responses of each one together.

    A row is as likely to be in an update as under uniform draws, so the expected gradient is the
    same; its variance is not smaller, since an update sees fewer prompts.

    Args:
        rows: prompts with responses.
        seed: with the number of the epoch, decides the order.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.prompt_ids, []).append(i)
    parts = list(groups.values())
    return lambda epoch: [i for n in _permutation(len(parts), seed + epoch) for i in parts[n]]


def _permutation(length: int, seed: int) -> list[int]:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()


class MicroBatches(Sampler[list[int]]):
    """The rows of every micro-batch of a run, or the part of them that one of its processes has.

    Epochs follow each other without a seam: every update has ``batch_size`` rows, an update that
    ends an epoch begins the next. A micro-batch is cut into equal parts, one for each process.

    Args:
        order: of the rows in each epoch.
        updates: of the run.
        batch_size: rows of an update, over all micro-batches and processes.
        accumulation: micro-batches of an update.
        part: number of the part of each micro-batch.
        parts: of each micro-batch; 1 for all of it.
    """

    def __init__(
        self,
        order: Order,
        *,
        updates: int,
        batch_size: int,
        accumulation: int = 1,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        self.order, self.part, self.parts = order, part, parts
        self.number, self.size = updates * accumulation, batch_size // accumulation

    def __len__(self) -> int:
        """Micro-batches of the run."""
        return self.number

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of the rows of one micro-batch after the other."""
        rows = chain.from_iterable(map(self.order, count()))
        share = self.size // self.parts
        for _ in range(self.number):
            batch = list(islice(rows, self.size))
            yield batch[self.part * share : (self.part + 1) * share]
