"""A cache a part at a time, for counting: memory does not grow with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tdistill.core import TopPSets
from tdistill.errors import CacheError
from tdistill.teacher.cache.open_shards import decoding
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.row_decoder import ShardReader, decode_steps
from tdistill.teacher.cache.row_layout import member_bits

_STEPS = 1 << 14  # of a block, unless one row has more


@dataclass(frozen=True, eq=False)
class Block:
    """The numbers of neighbouring responses, laid end to end.

    Attributes:
        sets: as captured.
        action: the response's token at each step.
        lengths: steps of each response.
        ended: whether each response ended.
        tail_sizes: distinct sampled tail tokens of each step; 0 where none were sampled.
        marks: steps of each response whose set lacks members that the teacher did not list.
        member_bits: what each member takes in the shard.
        teachers: the fingerprint of each response's teacher.
    """

    sets: TopPSets
    action: Int[Tensor, " T"]
    lengths: Int[Tensor, " B"]
    ended: Bool[Tensor, " B"]
    tail_sizes: Int[Tensor, " T"]
    marks: Int[Tensor, " B"]
    member_bits: Int[Tensor, " M"]
    teachers: list[str]


def blocks(cache: Cache) -> Iterator[Block]:
    """A whole cache in file order.

    Raises:
        CacheError: for a cache without rows, or bytes that are no rows.
    """
    if len(cache) == 0:
        raise CacheError(f"{cache.folder}: expected a cache with responses, found an empty one")
    with decoding(cache.folder):
        for shard in cache.shards():
            ended, marks = shard.ended(), [len(places) for places in shard.incomplete()]
            kept = _frequent(shard, cache.manifest.identity.vocabulary_size)
            for rows in _parts(shard):
                yield _block(shard, rows, ended[rows], np.array(marks)[rows], kept)


def _parts(shard: ShardReader) -> list[np.ndarray]:
    """The rows of a shard in parts of so many steps, in order."""
    parts = np.cumsum(shard.steps, dtype=np.int64) // _STEPS
    return np.split(np.arange(len(shard)), np.flatnonzero(np.diff(parts)) + 1)


def _frequent(shard: ShardReader, vocabulary_size: int) -> np.ndarray:
    """Whether each token has a place in the shard's table."""
    found = np.zeros(vocabulary_size, dtype=bool)
    found[shard.tokens[:-1]] = True
    return found


def _block(
    shard: ShardReader, rows: np.ndarray, ended: np.ndarray, marks: np.ndarray, kept: np.ndarray
) -> Block:
    identity = shard.identity
    action, evidence = decode_steps(shard.places(rows.tolist()), identity)
    sets, tail = evidence.sets, evidence.tail
    bits = member_bits(sets, ~kept[sets.ids.numpy()], identity.vocabulary_size)
    return Block(
        sets,
        action,
        lengths=torch.from_numpy(shard.steps[rows].astype(np.int64)),
        ended=torch.from_numpy(ended),
        tail_sizes=torch.zeros_like(sets.sizes) if tail is None else tail.sizes,
        marks=torch.from_numpy(marks),
        member_bits=torch.from_numpy(bits),
        teachers=[shard.teacher(row) for row in rows.tolist()],
    )
