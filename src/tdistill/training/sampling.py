"""Which rows an update is made of: a function of the seed and its number, not of the processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np
import torch
from torch.utils.data import Sampler

from tdistill.models.layout import Tokens
from tdistill.teacher.cache.cached_rows import prompts_of

Order = Callable[[int], np.ndarray]
"""The indices of all rows in the order of an epoch, given its number; 4 bytes each."""


def uniform_order(rows: int, seed: int) -> Order:
    """Every row once an epoch, any order as likely as any other.

    Args:
        rows: how many there are.
        seed: with the number of the epoch, decides the order.

    Example:
        >>> order = uniform_order(4, seed=0)
        >>> order(0).tolist(), order(1).tolist()
        ([0, 1, 3, 2], [1, 3, 2, 0])
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
    groups = PromptGroups.of(rows)
    return lambda epoch: groups.in_order(_permutation(len(groups), seed + epoch))


def _permutation(length: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(length, generator=generator).numpy().astype(np.uint32)


@dataclass(frozen=True, eq=False)
class PromptGroups:
    """Which rows respond to the same prompt, prompts in the order in which they come.

    Attributes:
        rows: numbers of the rows, those of a prompt together, in order.
        first: where those of each prompt begin, and the end of the last.
    """

    rows: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Tokens]) -> PromptGroups:
        """Those of some rows; prompts are told apart by 8 bytes of a hash."""
        keys = np.fromiter(map(_key, prompts_of(rows)), dtype=np.uint64, count=len(rows))
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        rank = first.argsort().argsort()  # of each group among all, by its first row
        order = rank[group].argsort(kind="stable")
        ends = np.bincount(rank[group]).cumsum()
        return cls(order.astype(np.uint32), np.concatenate([[0], ends]))

    def __len__(self) -> int:
        """Prompts."""
        return len(self.first) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        """The rows of a prompt."""
        return self.rows[self.first[number] : self.first[number + 1]]

    def in_order(self, prompts: np.ndarray) -> np.ndarray:
        """The rows of prompts, one prompt after the other."""
        sizes = np.diff(self.first)[prompts]
        moved = np.repeat(self.first[prompts] - (sizes.cumsum() - sizes), sizes)
        return self.rows[moved + np.arange(len(moved))]

    def numbers(self) -> list[int]:
        """The number of each row's prompt."""
        found = np.empty(len(self.rows), dtype=np.int64)
        found[self.rows] = np.repeat(np.arange(len(self)), np.diff(self.first))
        return found.tolist()


def _key(prompt: Sequence[int]) -> int:
    data = np.asarray(prompt, dtype="<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


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
            batch = [int(row) for row in islice(rows, self.size)]
            yield batch[self.part * share : (self.part + 1) * share]
