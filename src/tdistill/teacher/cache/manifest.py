"""The manifest of a teacher cache: what it holds, of whom, and a checksum for every shard."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tdistill.errors import CacheError
from tdistill.files import write_atomically
from tdistill.hashing import file_sha256

FORMAT = "tdistill-cache"
VERSION = 3
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class CacheIdentity:
    """Whose evidence a cache holds and how much of it: fixed when the cache is created."""

    teacher: str
    teacher_fingerprint: str
    tokenizer_fingerprint: str
    vocabulary_size: int
    captured_top_p: float
    max_set_size: int | None
    tail_samples: int
    min_gain: float | None


@dataclass(frozen=True)
class Shard:
    """One file of a cache."""

    name: str
    rows: int
    steps: int
    members: int
    bytes: int
    sha256: str
    tail_tokens: int


@dataclass(frozen=True)
class Manifest:
    """Identity and shards of a cache."""

    identity: CacheIdentity
    shards: tuple[Shard, ...] = ()

    @property
    def rows(self) -> int:
        """Responses in the cache."""
        return sum(shard.rows for shard in self.shards)

    @property
    def steps(self) -> int:
        """Steps in the cache."""
        return sum(shard.steps for shard in self.shards)

    def with_shard(self, shard: Shard) -> Manifest:
        """The manifest with one more shard, in order of names."""
        others = [s for s in self.shards if s.name != shard.name]
        return Manifest(self.identity, tuple(sorted([*others, shard], key=lambda s: s.name)))

    def write(self, folder: Path) -> None:
        """Replace the manifest file in one step."""
        counts = {"rows": self.rows, "steps": self.steps}
        content = {"format": FORMAT, "version": VERSION, "counts": counts, **asdict(self)}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache folder.

    Raises:
        CacheError: if there is none, or it is of another format or version, or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CacheError(
            f"{folder}: expected a teacher cache (a folder with {MANIFEST}), found none; "
            "make one with `tdistill rollouts` or `tdistill score`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = (content["format"], content["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path}: expected the manifest of a teacher cache; {error!r}") from error
    if found != (FORMAT, VERSION):
        raise CacheError(
            f"{path}: expected format {FORMAT} version {VERSION}, found {found[0]} version "
            f"{found[1]}; read it with the version of tdistill that wrote it"
        )
    try:
        identity = CacheIdentity(**content["identity"])
        shards = tuple(Shard(**shard) for shard in content["shards"])
    except (KeyError, TypeError) as error:
        raise CacheError(f"{path}: the manifest lacks or repeats an entry: {error}") from error
    return Manifest(identity, shards)


def check_shard(folder: Path, shard: Shard) -> None:
    """Refuse a shard that is missing, truncated or altered.

    Raises:
        CacheError: saying which of the three.
    """
    path = folder / shard.name
    if not path.is_file():
        raise CacheError(f"{path}: the manifest lists this shard, the file is missing; {_CURE}")
    size = path.stat().st_size
    if size != shard.bytes:
        raise CacheError(f"{path}: expected {shard.bytes} bytes, found {size}; {_CURE}")
    if file_sha256(path) != shard.sha256:
        raise CacheError(f"{path}: the content differs from its checksum; {_CURE}")


_CURE = (
    "restore the file, or delete it and its manifest entry and run the same command again to "
    "regenerate it"
)
