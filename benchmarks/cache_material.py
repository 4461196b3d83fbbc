"""The rows of a cache, copied until there are many shards, for the comparison of containers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tdistill.evidence.evidence import Evidence, take_responses
from tdistill.evidence.rows import Row
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.row_encoder import CachedResponse

SHARD = 256
LARGEST = 151_936  # token ids of the largest vocabulary


@dataclass(frozen=True)
class Material:
    """Rows with their evidence, copied until there are many shards."""

    name: str
    identity: CacheIdentity
    records: list[CachedResponse]
    shard: int

    @property
    def shards(self) -> list[list[CachedResponse]]:
        """The records of each file."""
        return [self.records[i : i + self.shard] for i in range(0, len(self.records), self.shard)]

    @cached_property
    def steps(self) -> int:
        """Steps of all rows."""
        return sum(len(record.row.response_ids) for record in self.records)

    @cached_property
    def members(self) -> int:
        """Set members of all steps."""
        return sum(len(record.evidence.sets.ids) for record in self.records)


def material(folder: Path, copies: int, vocabulary: int | None = None) -> Material:
    """The rows of a cache; copies differ by a token before the prompt.

    A shard holds no more rows than the cache, so no compressor sees two copies of a row.
    """
    cache = Cache(folder)
    rows, identity = cache.rows(), cache.manifest.identity
    parts = take_responses(cache.evidence(rows), [len(row.response_ids) for row in rows])
    if vocabulary is not None:
        rows, parts, identity = _spread(rows, parts, identity, vocabulary)
    records = [
        CachedResponse(replace(row, prompt_ids=(copy, *row.prompt_ids)), part, "copy")
        for copy in range(copies)
        for row, part in zip(rows, parts, strict=True)
    ]
    return Material(folder.name, identity, records, min(SHARD, len(rows)))


def _spread(
    rows: Sequence[Row], parts: Sequence[Evidence], identity: CacheIdentity, vocabulary: int
) -> tuple[list[Row], list[Evidence], CacheIdentity]:
    size = identity.vocabulary_size

    def ids(tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(token * vocabulary // size for token in tokens)

    moved = [
        replace(r, prompt_ids=ids(r.prompt_ids), response_ids=ids(r.response_ids)) for r in rows
    ]
    spread = [
        part.cut(replace(part.sets, ids=part.sets.ids * vocabulary // size)) for part in parts
    ]
    return moved, spread, replace(identity, vocabulary_size=vocabulary)
