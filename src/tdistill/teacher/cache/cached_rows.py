"""Rows of a cache as a sequence: decoded when they are asked for, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import overload

import numpy as np

from tdistill.evidence.rows import Row
from tdistill.models.layout import Tokens
from tdistill.teacher.cache.open_shards import OpenShards, decoding
from tdistill.teacher.cache.row_decoder import ShardReader

Numbers = range | np.ndarray
"""Numbers of rows in file order: nothing a row where they follow each other, else 4 bytes."""


class CachedRows(Sequence[Row]):
    """Chosen rows of a cache, in an order of their own.

    Args:
        shards: of the cache.
        numbers: of the rows.

    An index, or :meth:`take`, decodes those rows; a walk decodes one shard after the other; a part
    is again such a sequence. It is equal to a sequence of the same rows.
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, shards: OpenShards, numbers: Numbers) -> None:
        self._shards, self.numbers = shards, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> CachedRows: ...
    def __getitem__(self, index: int | slice) -> Row | CachedRows:
        if isinstance(index, slice):
            return CachedRows(self._shards, self.numbers[index])
        return self._shards.rows([int(self.numbers[index])])[0]

    def __iter__(self) -> Iterator[Row]:
        for shard, numbers in self._by_shard():
            with decoding(self._shards.folder):
                rows = shard.rows(numbers)
            yield from rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def take(self, indices: Sequence[int]) -> list[Row]:
        """Some of these rows, decoded together."""
        return self._shards.rows([int(self.numbers[i]) for i in indices])

    def select(self, indices: Sequence[int] | np.ndarray) -> CachedRows:
        """Some of these rows as a sequence."""
        return CachedRows(self._shards, compact(np.asarray(self.numbers)[indices]))

    def prompts(self) -> Iterator[tuple[int, ...]]:
        """The prompt of each row; no response is decoded."""
        for shard, numbers in self._by_shard():
            with decoding(self._shards.folder):
                prompts = shard.prompts()
            yield from (prompts[number] for number in numbers)

    def where(self, kept: Callable[[tuple[int, ...]], bool]) -> CachedRows:
        """The rows to chosen prompts."""
        marks = np.fromiter(map(kept, self.prompts()), dtype=bool, count=len(self))
        return self if marks.all() else self.select(np.flatnonzero(marks))

    def count_steps(self) -> int:
        """Tokens of all responses; none is decoded."""
        return sum(int(shard.steps[numbers].sum()) for shard, numbers in self._by_shard())

    def _by_shard(self) -> Iterator[tuple[ShardReader, list[int]]]:
        """Runs of rows of one shard, which is mapped meanwhile, and their numbers there."""
        first, numbers = self._shards.first, np.asarray(self.numbers, dtype=np.int64)
        owners = np.searchsorted(first, numbers, side="right") - 1
        ends = np.flatnonzero(np.diff(owners, append=-1)) + 1
        for start, stop in pairwise([0, *ends]):
            owner = int(owners[start])
            yield self._shards.open(owner), (numbers[start:stop] - first[owner]).tolist()


def compact(numbers: np.ndarray) -> Numbers:
    """The same numbers as a range where they follow each other, else in few bytes.

    Example:
        >>> compact(np.array([3, 4, 5])), compact(np.array([3, 5])).dtype
        (range(3, 6), dtype('uint32'))
    """
    count = len(numbers)
    if count and (np.diff(numbers) == 1).all():
        return range(int(numbers[0]), int(numbers[0]) + count)
    small = count == 0 or int(numbers.max()) < 1 << 32
    return numbers.astype(np.uint32 if small else np.uint64)


class JoinedRows(Sequence[Row]):
    """Several sequences of rows as one.

    Args:
        parts: in order.
    """

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        self.parts = parts
        self._first = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number = range(len(self))[index]
        part = int(np.searchsorted(self._first, number, side="right")) - 1
        return self.parts[part][number - int(self._first[part])]

    def __iter__(self) -> Iterator[Row]:
        return chain.from_iterable(self.parts)


def take_rows(rows: Sequence[Row], indices: Sequence[int]) -> list[Row]:
    """Some rows of any sequence; those of a cache are decoded together."""
    return rows.take(indices) if isinstance(rows, CachedRows) else [rows[i] for i in indices]


def select_rows(rows: Sequence[Row], indices: Sequence[int] | np.ndarray) -> Sequence[Row]:
    """Some rows as a sequence; those of a cache stay there."""
    return rows.select(indices) if isinstance(rows, CachedRows) else [rows[i] for i in indices]


def prompts_of(rows: Sequence[Tokens]) -> Iterator[tuple[int, ...]]:
    """The prompt of each row."""
    return rows.prompts() if isinstance(rows, CachedRows) else (row.prompt_ids for row in rows)


def count_steps(rows: Sequence[Row]) -> int:
    """Tokens of all responses."""
    if isinstance(rows, CachedRows):
        return rows.count_steps()
    return sum(len(row.response_ids) for row in rows)
