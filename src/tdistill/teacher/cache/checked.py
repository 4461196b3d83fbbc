"""Which shards were found whole, so that their bytes are read once and not at every opening."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tdistill.files import write_atomically
from tdistill.teacher.cache.manifest import Shard, check_shard

NOTE = ".checked.json"
_SETTLED = 2_000_000_000  # nanoseconds: what changes twice within a tick of the clock has one time
_AT_ONCE = 4  # files that are read together


class Checked:
    """The shards of a cache that have the checksum of the manifest, as long as they stay as found.

    A shard that was checked is known by its size, the time of its last change and the checksum; the
    note of them is a file in the cache, which may be removed, and is not written where that is not
    allowed. A file that was changed within two seconds is read each time: a second change might not
    be seen in its time.

    Args:
        folder: the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known = _read(folder / NOTE)
        self._kept = dict(self._known)

    def check(self, shards: Sequence[Shard], *, again: bool = False) -> None:
        """Refuse shards that are missing, truncated or altered.

        Args:
            shards: as the manifest lists them.
            again: read the bytes of those that are known, too.

        Raises:
            CacheError: of the first of them.
        """
        unknown = [shard for shard in shards if again or not self._knows(shard)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # reading and hashing do not hold the GIL
            list(pool.map(self._read_whole, unknown))

    def keep(self) -> None:
        """Write down what was found."""
        if self._known != self._kept:
            with suppress(OSError):  # read-only, or full: then they are read again
                write_atomically(self.folder / NOTE, json.dumps(self._known))
                self._kept = dict(self._known)

    def take_over(self, shard: Shard, other: Checked, name: str) -> None:
        """Know a shard that is a link to one of another folder, if that is known there."""
        seal = other._known.get(name)
        if seal is not None and seal == _seal(self.folder, shard):
            self._known[shard.name] = seal

    def _knows(self, shard: Shard) -> bool:
        seal = self._known.get(shard.name)
        return seal is not None and seal == _seal(self.folder, shard)

    def _read_whole(self, shard: Shard) -> None:
        before, seal = time.time_ns(), _seal(self.folder, shard)
        check_shard(self.folder, shard)
        if seal is not None and int(seal[1]) + _SETTLED < before:
            self._known[shard.name] = seal


def _seal(folder: Path, shard: Shard) -> list[int | str] | None:
    """Size, time of the last change and checksum of a shard; None where there is no file."""
    try:
        found = (folder / shard.name).stat()
    except OSError:
        return None
    same = found.st_size == shard.bytes
    return [found.st_size, found.st_mtime_ns, shard.sha256] if same else None


def _read(path: Path) -> dict[str, list[int | str]]:
    """The note; nothing is known where it is absent, or something else."""
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}
