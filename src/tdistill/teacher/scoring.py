"""Teacher evidence for responses that somebody else wrote, by one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tdistill.evidence.evidence import EvidenceSource, take_responses
from tdistill.evidence.rows import Row, row_key
from tdistill.hashing import key_of
from tdistill.models.layout import alike
from tdistill.teacher.cache.row_encoder import CachedResponse
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.listing.teacher import ListingTeacher
from tdistill.teacher.shares import WHOLE, Share

_BATCH, _BATCHES = 32, 8


def planned_score_shards(
    rows: Sequence[Row], *, batch_size: int = _BATCH, batches_per_shard: int = _BATCHES
) -> list[str]:
    """Names of the shards that :func:`collect_scores` writes for the same arguments."""
    content = [(row_key(rows[i]).hex(), rows[i].ended) for i in alike(rows)]
    key = key_of(content, batch_size, batches_per_shard)
    count = -(-len(rows) // (batch_size * batches_per_shard))
    return [f"score-{key}-{number:05d}" for number in range(count)]


def collect_scores(
    teacher: EvidenceSource,
    rows: Sequence[Row],
    writer: CacheWriter,
    *,
    batch_size: int = _BATCH,
    batches_per_shard: int = _BATCHES,
    on_finished: Callable[[int], None] = lambda count: None,
    share: Share = WHOLE,
) -> Iterator[int]:
    """Score what the cache does not hold yet; yields the rows of each shard, done or reused.

    Args:
        teacher: the model that scores, with the capture settings of the cache.
        rows: prompts with responses of any origin (ground truth, other models).
        writer: the open cache.
        batch_size: rows of one forward pass.
        batches_per_shard: forward passes written as one file.
        on_finished: told how many rows are done, as they are; those found done as well.
        share: which of the files are made here.

    Yields:
        Rows of each shard, in order.
    """
    sizes = {"batch_size": batch_size, "batches_per_shard": batches_per_shard}
    names, size = planned_score_shards(rows, **sizes), batch_size * batches_per_shard
    rows = [rows[i] for i in alike(rows)]
    plan = list(zip(names, range(0, len(rows), size), strict=True))
    for name, first in share.of(plan):
        group = rows[first : first + size]
        if writer.has(name):
            on_finished(len(group))
        else:
            batches = [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
            writer.write(name, list(_scored(teacher, batches, on_finished)))
        yield len(group)


def _scored(
    teacher: EvidenceSource, batches: Sequence[Sequence[Row]], on_finished: Callable[[int], None]
) -> Iterator[CachedResponse]:
    for batch in batches:
        yield from _score(teacher, batch)
        on_finished(len(batch))


def _score(teacher: EvidenceSource, rows: Sequence[Row]) -> list[CachedResponse]:
    if isinstance(teacher, ListingTeacher):
        return teacher.score(rows)
    evidence = teacher.evidence(rows)
    parts = take_responses(evidence, [len(row.response_ids) for row in rows])
    return [CachedResponse(row, part, "score") for row, part in zip(rows, parts, strict=True)]
