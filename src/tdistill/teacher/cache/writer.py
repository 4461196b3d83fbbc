"""Writes a cache: one shard after the other, each whole before the manifest lists it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from tdistill.errors import CacheError
from tdistill.files import link_or_copy, locked, write_atomically
from tdistill.hashing import file_sha256
from tdistill.models.language_model import LanguageModel, model_fingerprint, tokenizer_fingerprint
from tdistill.teacher.cache.checked import Checked
from tdistill.teacher.cache.manifest import (
    MANIFEST,
    CacheIdentity,
    Manifest,
    OtherTeacher,
    Shard,
    check_shard,
    read_manifest,
)
from tdistill.teacher.cache.row_encoder import CachedResponse, encode_rows
from tdistill.teacher.config import CaptureConfig


def identity_of(teacher: LanguageModel, config: CaptureConfig) -> CacheIdentity:
    """The identity of the cache that this teacher and capture would write."""
    return CacheIdentity(
        teacher=Path(teacher.name).name,
        teacher_fingerprint=model_fingerprint(teacher.model),
        tokenizer_fingerprint=tokenizer_fingerprint(teacher.tokenizer),
        vocabulary_size=teacher.vocabulary_size,
        **asdict(config),
    )


class CacheWriter:
    """Appends shards to a cache; one writer at a time.

    Args:
        folder: the cache; created if absent.
        identity: whose evidence will be written.
        beside: another cache, whose shards are not written again.

    Raises:
        CacheError: if a folder holds evidence of another identity, or another process writes.
    """

    def __init__(
        self, folder: Path, identity: CacheIdentity, *, beside: Path | None = None
    ) -> None:
        self.folder = folder
        self._elsewhere: Manifest | None = None
        if beside is not None and (beside / MANIFEST).exists():
            self._elsewhere = read_manifest(beside)
            _check_identity(beside, self._elsewhere.identity, identity)
        with ExitStack() as holding:
            holding.enter_context(_alone_in(folder))
            self.manifest = _manifest_of(folder, identity)
            self._holding = holding.pop_all()
        self._checked = Checked(folder)

    def has(self, name: str) -> bool:
        """Whether a shard is there, whole and unaltered."""
        file = f"{name}.arrow"
        shard = self.manifest.by_name.get(file)
        if shard is not None:
            self._checked.check([shard])
            return True
        return self._elsewhere is not None and file in self._elsewhere.by_name

    def write(self, name: str, responses: Sequence[CachedResponse]) -> None:
        """Write a shard whole, then list it in the manifest."""
        path = self.folder / f"{name}.arrow"
        batch = encode_rows(responses, self.manifest.identity)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as out:
            out.write_batch(batch)
        write_atomically(path, sink.getvalue().to_pybytes())
        self.manifest = self.manifest.with_shard(_listed(path, responses))
        self.manifest.write(self.folder)

    def adopt(
        self, places: Iterable[tuple[Path, Shard]], others: tuple[OtherTeacher, ...] = ()
    ) -> int:
        """Bring shards of other caches in, whole and unaltered; returns how many are new.

        Args:
            places: files, and what they are to be listed as.
            others: all teachers but the first whose rows the cache then holds.
        """
        new = [(p, shard) for p, shard in places if shard.name not in self.manifest.by_name]
        folders = {path.parent: Checked(path.parent) for path, _ in new}
        for folder, known in folders.items():
            own = [replace(shard, name=p.name) for p, shard in new if p.parent == folder]
            known.check(own)
            known.keep()
        for path, shard in new:
            link_or_copy(path, self.folder / shard.name)
            self._checked.take_over(shard, folders[path.parent], path.name)
        whole = self.manifest.with_shard(*(shard for _, shard in new))
        self.manifest = replace(whole, others=others)
        self.manifest.write(self.folder)
        return len(new)

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
        self._checked.keep()
        self._holding.close()


def drop_damaged(folder: Path) -> list[str]:
    """Take shards that are missing, truncated or altered out of a cache; they can be made again.

    Returns:
        Their names.

    Raises:
        CacheError: if another process writes to the cache, or it is none.
    """
    with _alone_in(folder):
        manifest = read_manifest(folder)
        damaged = [shard.name for shard in manifest.shards if _is_damaged(folder, shard)]
        if damaged:
            manifest.without(damaged).write(folder)
        for name in damaged:
            (folder / name).unlink(missing_ok=True)
    return damaged


def _is_damaged(folder: Path, shard: Shard) -> bool:
    try:
        check_shard(folder, shard)
    except CacheError:
        return True
    return False


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    with locked(folder / ".lock") as held:
        if not held:
            raise CacheError(
                f"{folder}: another process is writing to this cache; wait for it, or stop it"
            )
        yield


def _listed(path: Path, responses: Sequence[CachedResponse]) -> Shard:
    tails = [response.evidence.tail for response in responses]
    return Shard(
        path.name,
        rows=len(responses),
        steps=sum(len(response.row.response_ids) for response in responses),
        members=sum(len(response.evidence.sets.ids) for response in responses),
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        tail_tokens=sum(len(tail.ids) for tail in tails if tail is not None),
    )


def _manifest_of(folder: Path, identity: CacheIdentity) -> Manifest:
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        _check_identity(folder, manifest.identity, identity)
        return manifest
    manifest = Manifest(identity)
    manifest.write(folder)
    return manifest


def differences_of(found: CacheIdentity, expected: CacheIdentity) -> str:
    """What keeps evidence of one identity out of a cache of another, in words; "" if nothing.

    A teacher's name does not count, its weights do.
    """
    wanted, held = asdict(expected), asdict(found)
    different = [k for k in held if held[k] != wanted[k] and k != "teacher"]
    return "; ".join(f"{k}: expected {wanted[k]}, found {held[k]}" for k in different)


def _check_identity(folder: Path, found: CacheIdentity, expected: CacheIdentity) -> None:
    if details := differences_of(found, expected):
        raise CacheError(
            f"{folder}: this cache holds other evidence ({details}); write to another folder, or "
            "use the settings and the teacher it was made with"
        )
