"""Several caches put together into one, by links where the disk has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tdistill.errors import CacheError
from tdistill.teacher.cache.manifest import (
    MANIFEST,
    CacheIdentity,
    Manifest,
    OtherTeacher,
    Shard,
    read_manifest,
)
from tdistill.teacher.cache.writer import CacheWriter, differences_of
from tdistill.teacher.shares import PlanNote, read_note

_MOST_NAMED = 4
_NAMED_BY = 8  # characters of a fingerprint


@dataclass(frozen=True)
class Merged:
    """What a merge has done.

    Attributes:
        rows: in the cache now.
        shards: likewise.
        brought: shards that were not there before.
    """

    rows: int
    shards: int
    brought: int


def merge_caches(
    target: Path, sources: Sequence[Path], *, several_teachers: bool = False
) -> Merged:
    """Put the shards of several caches into one, which is then as if one process had made it.

    Shards are linked, or copied to another disk; the sources stay as they are. What is there
    already stays.

    Args:
        target: the cache; created if absent.
        sources: caches of the same identity; those of shares must be whole together.
        several_teachers: whether they may be of different teachers that mean the same by a token
            and were captured in the same way; each row keeps its own.

    Raises:
        CacheError: for evidence of other teachers or settings, units of a plan that nobody has
            made, two different shards of one name, a damaged shard; nothing is written then.
    """
    manifests = {source: read_manifest(source) for source in sources}
    if not manifests:
        raise CacheError(f"{target}: expected caches to merge into it, found none beside it")
    first = next(iter(manifests.values()))
    before = read_manifest(target) if (target / MANIFEST).exists() else Manifest(first.identity)
    caches = {target: before, **manifests}
    _check_identities(caches, several_teachers)
    _refuse_missing(caches)
    places = _places(manifests, before)
    with CacheWriter(target, before.identity) as writer:
        brought = writer.adopt(places.values(), _others(caches, before.identity))
        whole = writer.manifest
    return Merged(whole.rows, len(whole.shards), brought)


def _check_identities(manifests: dict[Path, Manifest], several_teachers: bool) -> None:
    (first, expected), *others = manifests.items()
    wanted = expected.identity
    for folder, manifest in others:
        found = manifest.identity
        if several_teachers:
            found = replace(found, teacher_fingerprint=wanted.teacher_fingerprint)
        if details := differences_of(found, wanted):
            cure = _SEVERAL if _differing(found, wanted) == ["teacher_fingerprint"] else _ONE
            raise CacheError(
                f"{folder}: expected evidence like that of {first}, found other evidence "
                f"({details}); {cure}"
            )


_ONE = "merge caches of one teacher and one capture"
_SEVERAL = f"{_ONE}, or add --several-teachers"


def _differing(found: CacheIdentity, wanted: CacheIdentity) -> list[str]:
    names = [name for name in vars(found) if name != "teacher"]
    return [name for name in names if getattr(found, name) != getattr(wanted, name)]


def _others(caches: dict[Path, Manifest], first: CacheIdentity) -> tuple[OtherTeacher, ...]:
    """All teachers but the first, in the order in which they come."""
    known = {key: name for manifest in caches.values() for key, name in manifest.teachers.items()}
    rest = {key: name for key, name in known.items() if key != first.teacher_fingerprint}
    return tuple(OtherTeacher(name, key) for key, name in rest.items())


def _places(manifests: dict[Path, Manifest], before: Manifest) -> dict[str, tuple[Path, Shard]]:
    """Where each shard is, by its name in the merged cache; the first of several that are the same.

    Teachers that were asked the same have shards of the same names: those of all but the first are
    named after their teacher, too.
    """
    known = {shard.name: shard for shard in before.shards}
    places: dict[str, tuple[Path, Shard]] = {}
    for folder, manifest in manifests.items():
        key = manifest.identity.teacher_fingerprint
        for shard in manifest.shards:
            name, other = shard.name, known.get(shard.name)
            taken = other is not None and other.sha256 != shard.sha256
            if taken and key != before.identity.teacher_fingerprint:
                name = f"{name.removesuffix('.arrow')}-{key[:_NAMED_BY]}.arrow"
            here = replace(shard, name=name)
            if known.setdefault(name, here).sha256 != shard.sha256:
                raise CacheError(
                    f"{folder / shard.name}: expected the shard of that name that another cache "
                    "has, found other content; leave one of the two caches out"
                )
            places.setdefault(name, (folder / shard.name, here))
    return places


def _refuse_missing(caches: dict[Path, Manifest]) -> None:
    """Plans must be whole, those of each teacher by themselves."""
    for key in dict.fromkeys(manifest.identity.teacher_fingerprint for manifest in caches.values()):
        own = {f: m for f, m in caches.items() if m.identity.teacher_fingerprint == key}
        there = {shard.name for manifest in own.values() for shard in manifest.shards}
        _refuse_missing_units(list(own), there)


def _refuse_missing_units(sources: Sequence[Path], there: set[str]) -> None:
    for folder, note in _notes(sources):
        missing = [place for place, name in enumerate(note.names) if f"{name}.arrow" not in there]
        if missing:
            count = note.share.count
            shares = sorted({place % count + 1 for place in missing})
            named = ", ".join(f"--shard {number}/{count}" for number in shares[:_MOST_NAMED])
            more = f" and {len(shares) - _MOST_NAMED} more" if len(shares) > _MOST_NAMED else ""
            raise CacheError(
                f"{folder}: expected all {note.units} units of its plan, found "
                f"{note.units - len(missing)}; run the same command with {named}{more} to its end, "
                "then merge again"
            )


def _notes(sources: Sequence[Path]) -> Iterator[tuple[Path, PlanNote]]:
    for source in sources:
        note = read_note(source)
        if note is not None:
            yield source, note
