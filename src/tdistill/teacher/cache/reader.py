"""Reads a cache: ragged, self-describing, addressed by content.

A cache is a folder of Arrow files (shards) and a manifest. A row is one response: its tokens and
the teacher's evidence at each of its steps, found by a hash of the token ids, never by row order.
Shards are memory-mapped, so reading a row touches only its own bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from tdistill.core import truncate
from tdistill.errors import CacheError, TdistillError
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row, row_key
from tdistill.teacher.cache.manifest import CacheIdentity, check_shard, read_manifest
from tdistill.teacher.cache.row_decoder import ShardReader, decode_evidence

_DAMAGE = (pa.ArrowException, OSError, LookupError, ValueError, TypeError, ArithmeticError)


class Cache:
    """Reads a cache.

    Args:
        folder: the cache.
        tokenizer_fingerprint: of the models that will use it; None skips the comparison.
        set_top_p: the largest p that will be asked for; None skips the comparison.

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
        for shard in self.manifest.shards:
            check_shard(folder, shard)
        self._shards = [_open(folder / s.name, identity) for s in self.manifest.shards]
        self._place: dict[bytes, tuple[int, int]] = {}
        for number, shard in enumerate(self._shards):
            for i, key in enumerate(shard.addresses()):
                self._place.setdefault(key, (number, i))

    def __reduce__(self) -> tuple[type[Cache], tuple[Path]]:
        """Another process opens the folder itself: a memory map would be sent as its bytes."""
        return Cache, (self.folder,)

    def __len__(self) -> int:
        """Rows."""
        return self.manifest.rows

    def rows(self, *, source: str = "", shard: str = "") -> list[Row]:
        """Rows in file order.

        Args:
            source: only rows whose source starts so (``rollout``, ``score``).
            shard: only rows of shards whose name starts so.
        """
        with decoding(self.folder):
            found = [pair for opened in self.shards(shard) for pair in opened.rows()]
        return [row for row, origin in found if origin.startswith(source)]

    def shards(self, name: str = "") -> list[ShardReader]:
        """The shards whose name starts so, in file order."""
        pairs = zip(self.manifest.shards, self._shards, strict=True)
        return [opened for listed, opened in pairs if listed.name.startswith(name)]

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

    def _places(self, rows: Iterable[Row]) -> list[tuple[ShardReader, int]]:
        places = []
        for row in rows:
            place = self._place.get(row_key(row))
            if place is None:
                raise CacheError(
                    f"{self.folder}: no evidence for a response of {len(row.response_ids)} tokens "
                    f"to a prompt of {len(row.prompt_ids)} tokens; add it with `tdistill score`, "
                    "or train on the rows of this cache"
                )
            places.append((self._shards[place[0]], place[1]))
        return places

    def _check_top_p(self, set_top_p: float) -> None:
        captured = self.manifest.identity.captured_top_p
        if set_top_p > captured:
            raise CacheError(
                f"{self.folder}: expected set_top_p of at most the captured {captured}, found "
                f"{set_top_p}; lower set_top_p or capture again with captured_top_p >= {set_top_p}"
            )


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


def _open(path: Path, identity: CacheIdentity) -> ShardReader:
    with decoding(path):
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        batch.validate(full=True)
        return ShardReader(batch, identity)
