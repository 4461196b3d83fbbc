"""The shards of a cache, mapped when a row of theirs is read; their pages go after a while."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tdistill.errors import CacheError, TdistillError
from tdistill.evidence.rows import Row
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.row_decoder import Place, ShardReader, rows_at
from tdistill.teacher.cache.row_encoder import COLUMNS

_DAMAGE = (pa.ArrowException, OSError, LookupError, ValueError, TypeError, ArithmeticError)
_MOST_MAPPED = 32 << 20  # bytes of pages that reads leave mapped before they are let go
_MAPPED_BY_A_ROW = 256 << 10  # the system maps pages around the one that is touched


class OpenShards:
    """All rows of a cache by their number in file order, from 0.

    Pages of mapped files count as a process's own, although all share them and the system may take
    them back: after so many bytes they are let go, and mapped again where they are read.

    Args:
        folder: the cache.
        names: of the files.
        rows: of each.
        identity: of the cache.
        mapped: shards that are open already, by their number.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        rows: Sequence[int],
        identity: CacheIdentity,
        *,
        mapped: Mapping[int, ShardReader] | None = None,
    ) -> None:
        self.folder, self.names, self.identity = folder, list(names), identity
        self.first = np.cumsum([0, *rows])  # numbers of the first rows
        self._mapped = dict(mapped or {})
        self._read: dict[int, int] = {}  # shards, and bytes of theirs that may be mapped

    def __reduce__(self) -> tuple[type[OpenShards], tuple[Any, ...]]:
        """Another process maps the files itself: a map would be sent as its bytes."""
        rows = np.diff(self.first).tolist()
        return OpenShards, (self.folder, self.names, rows, self.identity)

    def __len__(self) -> int:
        """Rows."""
        return int(self.first[-1])

    def open(self, number: int) -> ShardReader:
        """A map of a shard of its own, which ends with the reader."""
        return open_shard(self.folder / self.names[number], self.identity)

    def places(self, numbers: Sequence[int] | np.ndarray) -> list[Place]:
        """Where rows are."""
        shards = np.searchsorted(self.first, numbers, side="right") - 1
        within = numbers - self.first[shards]
        if sum(self._read.values()) > _MOST_MAPPED:
            for number in self._read:
                let_go(self._mapped[number].file)
            self._read = {}
        for number, count in Counter(shards.tolist()).items():
            self._read[number] = self._read.get(number, 0) + count * _MAPPED_BY_A_ROW
        return [(self._at(s), i) for s, i in zip(shards.tolist(), within.tolist(), strict=True)]

    def rows(self, numbers: Sequence[int] | np.ndarray) -> list[Row]:
        """Some rows, in the order asked for."""
        with decoding(self.folder):
            return rows_at(self.places(numbers), self.identity)

    def _at(self, number: int) -> ShardReader:
        if number not in self._mapped:
            self._mapped[number] = self.open(number)
        return self._mapped[number]


def let_go(pages: pa.Buffer) -> None:
    """Take pages of a mapped file out of this process; they are mapped again when they are read."""
    if sys.platform == "linux":
        place, size = ctypes.c_void_p(pages.address), ctypes.c_size_t(pages.size)
        _system().madvise(place, size, mmap.MADV_DONTNEED)


@cache
def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def open_shard(path: Path, identity: CacheIdentity) -> ShardReader:
    """Map a shard.

    Raises:
        CacheError: the file is something else.
    """
    with decoding(path):
        with pa.memory_map(str(path)) as file:  # its descriptor is closed, its pages stay
            pages, batch = file.read_buffer(), pa.ipc.open_file(file).get_batch(0)
        batch.validate(full=True)
        wrong = [name for name, kind in COLUMNS.items() if batch.schema.field(name).type != kind]
        if wrong:
            raise ValueError(f"columns {', '.join(wrong)} of other types")
        return ShardReader(batch, identity, pages)


@contextmanager
def decoding(place: Path) -> Iterator[None]:
    """Read what may be anything: bytes that are no rows end in a CacheError.

    Args:
        place: file or folder, for the message.
    """
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, TdistillError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise CacheError(
            f"{place}: expected a shard of a teacher cache, found something else ({reason}); "
            "make the cache again"
        ) from error
