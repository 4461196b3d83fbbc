"""Several caches put together into one, by links where the disk has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdistill.errors import CacheError
from tdistill.teacher.cache.manifest import MANIFEST, Manifest, Shard, read_manifest
from tdistill.teacher.cache.writer import CacheWriter, differences_of
from tdistill.teacher.shares import PlanNote, read_note

_MOST_NAMED = 4


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


def merge_caches(target: Path, sources: Sequence[Path]) -> Merged:
    """Put the shards of several caches into one, which is then as if one process had made it.

    Shards are linked, or copied to another disk; the sources stay as they are. What is there
    already stays.

    Args:
        target: the cache; created if absent.
        sources: caches of the same identity; those of shares must be whole together.

    Raises:
        CacheError: for evidence of other teachers or settings, units of a plan that nobody has
            made, two different shards of one name, a damaged shard; nothing is written then.
    """
    manifests = {source: read_manifest(source) for source in sources}
    if not manifests:
        raise CacheError(f"{target}: expected caches to merge into it, found none beside it")
    identity = next(iter(manifests.values())).identity
    before = read_manifest(target) if (target / MANIFEST).exists() else Manifest(identity)
    _check_identities({target: before, **manifests})
    places = _places(manifests, before)
    _refuse_missing(sources, {*places, *(shard.name for shard in before.shards)})
    with CacheWriter(target, identity) as writer:
        brought = writer.adopt(places.values())
        whole = writer.manifest
    return Merged(whole.rows, len(whole.shards), brought)


def _check_identities(manifests: dict[Path, Manifest]) -> None:
    (first, expected), *others = manifests.items()
    for folder, manifest in others:
        if details := differences_of(manifest.identity, expected.identity):
            raise CacheError(
                f"{folder}: expected evidence like that of {first}, found other evidence "
                f"({details}); merge caches of one teacher and one capture"
            )


def _places(manifests: dict[Path, Manifest], before: Manifest) -> dict[str, tuple[Path, Shard]]:
    """Where each shard is, by its name; the first of several that are the same."""
    known = {shard.name: shard for shard in before.shards}
    places: dict[str, tuple[Path, Shard]] = {}
    for folder, manifest in manifests.items():
        for shard in manifest.shards:
            other = known.setdefault(shard.name, shard)
            if other.sha256 != shard.sha256:
                raise CacheError(
                    f"{folder / shard.name}: expected the shard of that name that another cache "
                    "has, found other content; leave one of the two caches out"
                )
            places.setdefault(shard.name, (folder, shard))
    return places


def _refuse_missing(sources: Sequence[Path], there: set[str]) -> None:
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
