"""The teacher cache: ragged, self-describing, addressed by content.

A cache is a folder of Arrow files (shards) and a manifest. A row is one response: its tokens and
the teacher's evidence at each of its steps, found by a hash of the token ids, never by row order.
Shards are memory-mapped, so reading a row touches only its own bytes. Shards of older formats are
read as they are; what is added to such a cache is written in the present one.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa

from tdistill.core import truncate
from tdistill.errors import CacheError
from tdistill.evidence.evidence import Evidence, concatenate
from tdistill.evidence.rows import Row, row_key
from tdistill.models.language_model import LanguageModel, model_fingerprint, tokenizer_fingerprint
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.manifest import (
    MANIFEST,
    CacheIdentity,
    Manifest,
    Shard,
    check_shard,
    file_sha256,
    read_manifest,
    write_atomically,
)
from tdistill.teacher.packed import PackedShard, decode_rows, evidence_of
from tdistill.teacher.packing import packed_batch
from tdistill.teacher.plain import PlainShard
from tdistill.teacher.record import Record


def identity_of(teacher: LanguageModel, config: CaptureConfig) -> CacheIdentity:
    """The identity of the cache that this teacher and capture would write."""
    return CacheIdentity(
        teacher=Path(teacher.name).name,
        teacher_fingerprint=model_fingerprint(teacher.model),
        tokenizer_fingerprint=tokenizer_fingerprint(teacher.tokenizer),
        vocabulary_size=teacher.vocabulary_size,
        captured_top_p=config.captured_top_p,
        max_set_size=config.max_set_size,
        tail_samples=config.tail_samples,
        min_gain=config.min_gain,
    )


class CacheWriter:
    """Appends shards to a cache; one writer at a time.

    Args:
        folder: the cache; created if absent.
        identity: whose evidence will be written.

    Raises:
        CacheError: if the folder holds evidence of another identity, or another process writes.
    """

    def __init__(self, folder: Path, identity: CacheIdentity) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = _lock(folder)
        try:
            self.manifest = _manifest_of(folder, identity)
        except BaseException:
            self._lock.close()
            raise

    def has(self, name: str) -> bool:
        """Whether a shard is there, whole and unaltered."""
        listed = [s for s in self.manifest.shards if s.name == f"{name}.arrow"]
        for shard in listed:
            check_shard(self.folder, shard)
        return bool(listed)

    def write(self, name: str, records: Sequence[Record]) -> None:
        """Write a shard whole, then list it in the manifest."""
        path = self.folder / f"{name}.arrow"
        batch = packed_batch(records, self.manifest.identity)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as out:
            out.write_batch(batch)
        write_atomically(path, sink.getvalue().to_pybytes())
        steps = sum(len(record.row.response_ids) for record in records)
        members = sum(len(record.evidence.sets.ids) for record in records)
        size = path.stat().st_size
        tails = [record.evidence.tail for record in records]
        tail_tokens = sum(len(tail.ids) for tail in tails if tail is not None)
        counts = (path.name, len(records), steps, members, size)
        shard = Shard(*counts, file_sha256(path), tail_tokens)
        self.manifest = self.manifest.with_shard(shard)
        self.manifest.write(self.folder)

    def __enter__(self) -> CacheWriter:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the folder."""
        self._lock.close()


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
        self._shards = [
            _open_shard(folder / shard.name, identity) for shard in self.manifest.shards
        ]
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
        found = [pair for opened in self._shards_named(shard) for pair in opened.rows()]
        return [row for row, origin in found if origin.startswith(source)]

    def keys(self, *, shard: str = "") -> list[bytes]:
        """The stored addresses of the rows, in the order of :meth:`rows`."""
        return [key for opened in self._shards_named(shard) for key in opened.addresses()]

    def _shards_named(self, prefix: str) -> list[PackedShard | PlainShard]:
        pairs = zip(self.manifest.shards, self._shards, strict=True)
        return [opened for listed, opened in pairs if listed.name.startswith(prefix)]

    def evidence(self, rows: Iterable[Row], *, set_top_p: float | None = None) -> Evidence:
        """The evidence of the given rows, laid end to end.

        Args:
            rows: responses that are in the cache.
            set_top_p: sets are cut to this mass; None keeps what was captured.

        Raises:
            CacheError: for a row that is not in the cache, or a larger p than captured.
        """
        found = self._read(self._places(rows))
        if set_top_p is None:
            return found
        self._check_top_p(set_top_p)
        return found.cut(truncate(found.sets, set_top_p))

    def shard_columns(self, *, shard: str = "") -> Iterable[dict[str, Any]]:
        """The numbers of shards as numpy arrays, for counting over a whole cache.

        Args:
            shard: only shards whose name starts so.

        Yields:
            ``response_ids``, ``set_sizes``, ``set_ids``, ``set_log_probs``, ``log_normaliser``,
            ``action_log_prob`` over all steps; ``tail_sizes``, ``tail_ids``, ``tail_log_probs``,
            ``tail_counts`` where tails were sampled; ``lengths`` and ``ended`` of the rows.
        """
        return (opened.columns() for opened in self._shards_named(shard))

    def _places(self, rows: Iterable[Row]) -> list[tuple[PackedShard | PlainShard, int]]:
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

    def _read(self, places: Sequence[tuple[PackedShard | PlainShard, int]]) -> Evidence:
        """Packed rows of all shards in one go; rows of older formats one by one."""
        parts = []
        for packed, group in groupby(places, key=lambda place: isinstance(place[0], PackedShard)):
            if packed:
                rows = [(shard, i) for shard, i in group if isinstance(shard, PackedShard)]
                found = [decode_rows(rows, self.manifest.identity)]
            else:
                found = [s.row_columns(i) for s, i in group if isinstance(s, PlainShard)]
            parts += [evidence_of(columns) for columns in found]
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def _check_top_p(self, set_top_p: float) -> None:
        captured = self.manifest.identity.captured_top_p
        if set_top_p > captured:
            raise CacheError(
                f"{self.folder}: expected set_top_p of at most the captured {captured}, found "
                f"{set_top_p}; lower set_top_p or capture again with captured_top_p >= {set_top_p}"
            )


def _open_shard(path: Path, identity: CacheIdentity) -> PackedShard | PlainShard:
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    if "evidence" in batch.schema.names:
        return PackedShard(batch, identity)
    return PlainShard(batch)


def _manifest_of(folder: Path, identity: CacheIdentity) -> Manifest:
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        _check_identity(folder, manifest.identity, identity)
        return manifest
    manifest = Manifest(identity)
    manifest.write(folder)
    return manifest


def _check_identity(folder: Path, found: CacheIdentity, expected: CacheIdentity) -> None:
    wanted, held = asdict(expected), asdict(found)
    different = [k for k in held if held[k] != wanted[k] and k != "teacher"]
    if different:
        details = "; ".join(f"{k}: expected {wanted[k]}, found {held[k]}" for k in different)
        raise CacheError(
            f"{folder}: this cache holds other evidence ({details}); write to another folder, or "
            "use the settings and the teacher it was made with"
        )


def _lock(folder: Path) -> IO[bytes]:
    file = (folder / ".lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise CacheError(
            f"{folder}: another process is writing to this cache; wait for it, or stop it"
        ) from error
    return file
