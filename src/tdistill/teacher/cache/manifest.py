"""The manifest of a teacher cache: what it holds, of whom, and a checksum for every shard."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

from tdistill.checks import check
from tdistill.errors import CacheError, InvalidValueError, excerpt
from tdistill.files import write_atomically
from tdistill.hashing import checksum_of, file_sha256
from tdistill.plain_json import BadJSON, read_json_object
from tdistill.strict import structure
from tdistill.strict.kinds import keys_of, options_of

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
        content["sha256"] = checksum_of(content)
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())


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
        content = read_json_object(path)
    except BadJSON as error:
        raise CacheError(
            f"{path}: expected the manifest of a teacher cache, found {error}; {_AGAIN}"
        ) from error
    if not {"format", "version"} <= content.keys():
        raise CacheError(
            f"{path}: expected the manifest of a teacher cache, found JSON of something else; "
            f"{_AGAIN}"
        )
    found = (content["format"], content["version"])
    if found != (FORMAT, VERSION):
        raise CacheError(
            f"{path}: expected format {FORMAT} version {VERSION}, found {excerpt(found[0], 40)} "
            f"version {excerpt(found[1], 40)}; read it with the version of tdistill that wrote it"
        )
    try:
        identity = _entry(CacheIdentity, content.get("identity"), "identity")
        shards, others = _list(content, "shards"), _list(content, "others")
        made = Manifest(
            identity,
            tuple(_entry(Shard, x, f"shards[{i}]") for i, x in enumerate(shards)),
            tuple(_entry(OtherTeacher, x, f"others[{i}]") for i, x in enumerate(others)),
        )
    except InvalidValueError as error:
        raise CacheError(f"{path}: {error}; {_AGAIN}") from error
    for shard in made.shards:
        _check_name(path, shard.name)
    if content.get("sha256") != checksum_of(content):
        raise CacheError(
            f"{path}: the content differs from its checksum: it was changed after it was written; "
            f"{_AGAIN}"
        )
    return made


def _list(content: Mapping[str, Any], name: str) -> list[Any]:
    check(name, isinstance(content.get(name), list), "a list", "none")
    return content[name]


def _entry(kind: type[_Entry], values: Any, where: str) -> _Entry:
    """An entry whose fields have their types; numbers are not negative.

    There may be thousands: those that are sound are not looked at in every detail.
    """
    kinds = _kinds(kind)
    check(where, isinstance(values, dict), f"an object of {', '.join(kinds)}", "none")
    sound = values.keys() == kinds.keys() and all(type(x) in kinds[n] for n, x in values.items())
    made = kind(**values) if sound else structure(kind, values, where=where)
    for name, value in vars(made).items():
        fits = not isinstance(value, (int, float)) or 0 <= value < _LARGEST
        check(f"{where}: {name}", fits, f"a number from 0 to {_LARGEST}", value)
    return made


@cache
def _kinds(kind: type) -> dict[str, tuple[type, ...]]:
    """The types that the fields of an entry may have in JSON."""
    found = {name: options_of(key.kind) for name, key in keys_of(kind).items()}
    return {name: (*x, int) if float in x else x for name, x in found.items()}


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


_AGAIN = "restore the file, or make the cache again"
_CURE = (
    "restore the file, or take it out with `tdistill verify CACHE --drop` and run the command that "
    "made it again"
)
