"""The manifest of a teacher cache: what it holds, of whom, and a checksum for every shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from tdistill.errors import CacheError
from tdistill.files import write_atomically
from tdistill.hashing import file_sha256

FORMAT = "tdistill-cache"
VERSION = 5
MANIFEST = "manifest.json"
_LARGEST = 1 << 53


@dataclass(frozen=True)
class CacheIdentity:
    """Whose evidence a cache holds and how much of it: fixed when the cache is created.

    Attributes:
        teacher: its name.
        teacher_fingerprint: of its weights, or of the name by which a server knows it.
        tokenizer_fingerprint: of what gives ids their meaning.
        vocabulary_size: ids that count.
        captured_top_p: mass of the sets.
        max_set_size: cap on them.
        tail_samples: draws a step off the set.
        min_gain: ends a set early, nats.
        listed_tokens: how many tokens the teacher listed at a step, where a set may lack some for
            that reason; None: every set is complete, or at its cap.
        normaliser: whether log-normalisers are there; a teacher that only lists tokens gives none.
    """

    teacher: str
    teacher_fingerprint: str
    tokenizer_fingerprint: str
    vocabulary_size: int
    captured_top_p: float
    max_set_size: int | None
    tail_samples: int
    min_gain: float | None
    listed_tokens: int | None = None
    normaliser: bool = True


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
class OtherTeacher:
    """One more teacher whose rows a cache holds: of the same tokens, captured in the same way."""

    teacher: str
    teacher_fingerprint: str


_Entry = TypeVar("_Entry", CacheIdentity, Shard, OtherTeacher)


@dataclass(frozen=True)
class Manifest:
    """Identity and shards of a cache; the identity names the first of several teachers."""

    identity: CacheIdentity
    shards: tuple[Shard, ...] = ()
    others: tuple[OtherTeacher, ...] = ()

    @property
    def teachers(self) -> dict[str, str]:
        """Names of all teachers, by their fingerprints."""
        return {t.teacher_fingerprint: t.teacher for t in (self.identity, *self.others)}

    @property
    def rows(self) -> int:
        """Responses in the cache."""
        return sum(shard.rows for shard in self.shards)

    @property
    def steps(self) -> int:
        """Steps in the cache."""
        return sum(shard.steps for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @cached_property
    def by_name(self) -> dict[str, Shard]:
        """The shards by the names of their files."""
        return {shard.name: shard for shard in self.shards}

    def with_shard(self, *shards: Shard) -> Manifest:
        """The manifest with one more shard, or several, in order of names."""
        found = self.by_name | {shard.name: shard for shard in shards}
        return replace(self, shards=tuple(found[name] for name in sorted(found)))

    def without(self, names: Collection[str]) -> Manifest:
        """The manifest without the shards of these names."""
        return replace(self, shards=tuple(s for s in self.shards if s.name not in names))

    def write(self, folder: Path) -> None:
        """Replace the manifest file in one step."""
        counts = {"rows": self.rows, "steps": self.steps}
        content = {"format": FORMAT, "version": VERSION, "counts": counts, **asdict(self)}
        content["sha256"] = _checksum(content)
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())


def _checksum(content: Mapping[str, Any]) -> str:
    """Of all entries but itself, however they are laid out in the file."""
    entries = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache folder.

    Raises:
        CacheError: if there is none, or it is of another format or version, or damaged, or was
            changed by hand.
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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(
            f"{path}: expected the manifest of a teacher cache, found something else "
            f"({type(error).__name__}: {str(error)[:80]})"
        ) from error
    if found != (FORMAT, VERSION):
        raise CacheError(
            f"{path}: expected format {FORMAT} version {VERSION}, found {str(found[0])[:40]} "
            f"version {str(found[1])[:40]}; read it with the version of tdistill that wrote it"
        )
    try:
        identity = _entry(CacheIdentity, content["identity"])
        shards = tuple(_entry(Shard, shard) for shard in content["shards"])
        others = tuple(_entry(OtherTeacher, teacher) for teacher in content["others"])
    except (KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{path}: the manifest lacks or repeats an entry: {error}") from error
    for shard in shards:
        _check_name(path, shard.name)
    if content.get("sha256") != _checksum(content):
        raise CacheError(
            f"{path}: the content differs from its checksum: it was changed after it was written; "
            "restore it, or make the cache again"
        )
    return Manifest(identity, shards, others)


def _entry(kind: type[_Entry], values: Any) -> _Entry:
    """An entry whose fields have their types; numbers are not negative."""
    made = kind(**values)
    hints = _hints(kind)
    for name, value in vars(made).items():
        allowed = get_args(hints[name]) or (hints[name],)
        allowed = (*allowed, int) if float in allowed else allowed
        flag = isinstance(value, bool) and bool not in allowed
        if flag or not isinstance(value, allowed):
            raise TypeError(f"{name} is {type(value).__name__}")
        if isinstance(value, (int, float)) and not 0 <= value < _LARGEST:
            raise ValueError(f"{name} is out of range")
    return made


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_name(path: Path, name: str) -> None:
    """Refuse a shard that is not a file of the cache's own folder."""
    if Path(name).name != name or "\\" in name or not name.endswith(".arrow"):
        raise CacheError(
            f"{path}: expected shards that are .arrow files of this folder, found {name[:80]}; "
            "take a cache from whom you trust"
        )


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
    "restore the file, or take it out with `tdistill verify CACHE --drop` and run the command that "
    "made it again"
)
