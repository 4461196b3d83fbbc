"""Reads a cache: ragged, self-describing, addressed by content.

A cache is a folder of Arrow files (shards) and a manifest. A row is one response: its tokens and
the teacher's evidence at each of its steps, found by a hash of the token ids, never by row order.
Shards are memory-mapped, so reading a row touches only its own bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from tdistill.core import truncate
from tdistill.errors import CacheError
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row, row_key
from tdistill.teacher.cache.cached_rows import CachedRows, compact
from tdistill.teacher.cache.checked import Checked
from tdistill.teacher.cache.manifest import read_manifest
from tdistill.teacher.cache.open_shards import OpenShards, decoding, let_go, open_shard
from tdistill.teacher.cache.row_decoder import Place, ShardReader, decode_evidence
from tdistill.teacher.cache.row_index import RowIndex


class Cache:
    """Reads a cache.

    Args:
        folder: the cache.
        tokenizer_fingerprint: of the models that will use it; None skips the comparison.
        set_top_p: the largest p that will be asked for; None skips the comparison.
        again: read shards whole that were found whole before and have not changed since.

    Raises:
        CacheError: for another tokenizer, a larger p than captured, a missing, truncated or altered
            shard, or an unknown version.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokenizer_fingerprint: str | None = None,
        set_top_p: float | None = None,
        again: bool = False,
    ) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        identity = self.manifest.identity
        if tokenizer_fingerprint not in (None, identity.tokenizer_fingerprint):
            raise CacheError(
                f"{folder}: expected tokenizer {tokenizer_fingerprint}, found a cache made with "
                f"tokenizer {identity.tokenizer_fingerprint} (teacher {identity.teacher}); token "
                "ids would mean other words: make a cache with this tokenizer"
            )
        if set_top_p is not None:
            self._check_top_p(set_top_p)
        checked = Checked(folder)
        checked.check(self.manifest.shards, again=again)
        checked.keep()
        names = [shard.name for shard in self.manifest.shards]
        mapped: dict[int, ShardReader] = {}
        prefixes: list[np.ndarray] = []
        for number, name in enumerate(names):
            shard = mapped[number] = open_shard(folder / name, identity)
            prefixes.append(shard.prefixes())
            let_go(shard.file)
        rows = list(map(len, prefixes))
        self._shards = OpenShards(folder, names, rows, identity, mapped=mapped)
        self._index = RowIndex(np.concatenate([np.zeros(0, dtype="<u8"), *prefixes]))

    def __reduce__(self) -> tuple[type[Cache], tuple[Path]]:
        """Another process opens the folder itself: a memory map would be sent as its bytes."""
        return Cache, (self.folder,)

    def __len__(self) -> int:
        """Rows."""
        return self.manifest.rows

    @property
    def index_bytes(self) -> int:
        """Bytes of memory that a process holds for finding rows."""
        return self._index.nbytes

    def rows(
        self,
        *,
        source: str = "",
        shard: str = "",
        names: Collection[str] | None = None,
        often: Mapping[str, int] | None = None,
    ) -> CachedRows:
        """Rows in file order, decoded when they are asked for.

        Args:
            source: only rows whose source starts so (``rollout``, ``score``).
            shard: only rows of shards whose name starts so.
            names: only rows of these shards.
            often: only rows of teachers of these fingerprints, each so often.
        """
        chosen = [
            number
            for number, name in enumerate(self._shards.names)
            if name.startswith(shard) and (names is None or name in names)
        ]
        parts = [self._numbers(number, source, often) for number in chosen]
        found = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
        return CachedRows(self._shards, compact(found))

    def _numbers(self, shard: int, source: str, often: Mapping[str, int] | None) -> np.ndarray:
        """Numbers of the rows of a shard whose source starts so, those of a teacher repeated."""
        first, last = self._shards.first[shard : shard + 2]
        numbers = np.arange(first, last)
        if not source and often is None:
            return numbers
        with decoding(self.folder):
            opened = self._shards.open(shard)
            wanted = np.array([origin.startswith(source) for origin in opened.sources()])
            teachers = opened.teachers()
        times = np.array([1 if often is None else often.get(key, 0) for key in teachers])
        return np.repeat(numbers, wanted * times)

    def shards(self, name: str = "") -> Iterator[ShardReader]:
        """The shards whose name starts so, in file order, each mapped while it is used."""
        numbers = range(len(self._shards.names))
        return (self._shards.open(n) for n in numbers if self._shards.names[n].startswith(name))

    def evidence(self, rows: Iterable[Row], *, set_top_p: float | None = None) -> Evidence:
        """The evidence of the given rows, laid end to end.

        Args:
            rows: responses that are in the cache.
            set_top_p: sets are cut to this mass; None keeps what was captured.

        Raises:
            CacheError: for a row that is not in the cache, or a larger p than captured.
        """
        places = self._places(rows)
        with decoding(self.folder):
            found = decode_evidence(places, self.manifest.identity)
        if set_top_p is None:
            return found
        self._check_top_p(set_top_p)
        return found.cut(truncate(found.sets, set_top_p))

    def _places(self, rows: Iterable[Row]) -> list[Place]:
        rows = list(rows)
        keys = [row_key(row) for row in rows]
        found = self._index.find(keys)
        ends = np.cumsum([0, *map(len, found)])
        places = self._shards.places(np.concatenate([np.zeros(0, dtype=np.int64), *found]))
        return [
            self._first(row, key, places[a:b])
            for row, key, (a, b) in zip(rows, keys, pairwise(ends), strict=True)
        ]

    def _first(self, row: Row, key: bytes, places: Iterable[Place]) -> Place:
        """The first of the places that has the whole address, of the row's teacher if it can be."""
        found = [(shard, number) for shard, number in places if shard.address(number) == key]
        if found:
            own = (place for place in found if place[0].teacher(place[1]) == row.teacher)
            return next(own, found[0])
        raise CacheError(
            f"{self.folder}: no evidence for a response of {len(row.response_ids)} tokens "
            f"to a prompt of {len(row.prompt_ids)} tokens; add it with `tdistill score`, "
            "or train on the rows of this cache"
        )

    def _check_top_p(self, set_top_p: float) -> None:
        captured = self.manifest.identity.captured_top_p
        if set_top_p > captured:
            raise CacheError(
                f"{self.folder}: expected set_top_p of at most the captured {captured}, found "
                f"{set_top_p}; lower set_top_p or capture again with captured_top_p >= {set_top_p}"
            )
