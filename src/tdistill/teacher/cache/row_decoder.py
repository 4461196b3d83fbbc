"""Bytes to evidence: any number of rows, of any shards, decoded in one go."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import torch

from tdistill.core import TopPSets
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row
from tdistill.evidence.tail import Tail
from tdistill.teacher.cache.bit_streams import StreamReader
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.rounding import NORMALISER_STEP, level_table
from tdistill.teacher.cache.row_layout import (
    FIRST_LEVEL,
    LEVEL_DELTA,
    NORMALISER,
    OUTSIDE_LEVEL,
    PLACES,
    SET_SIZE,
    TAIL_COUNT,
    TAIL_LEVEL,
    TAIL_SIZE,
    taken_members,
    token_bits,
    token_widths,
)


class ShardReader:
    """An open shard; its bytes stay in the mapped file until they are decoded."""

    def __init__(self, batch: pa.RecordBatch, identity: CacheIdentity) -> None:
        self._batch, self._identity = batch, identity
        evidence = batch.column("evidence")
        _, offsets, data = evidence.buffers()
        ends = np.frombuffer(offsets, dtype="<i4")[: len(evidence) + 1].astype(np.int64)
        self.data = np.frombuffer(b"" if data is None else data, dtype=np.uint8)
        self.starts, self.stops = ends[:-1], ends[1:]
        self.prompt_tokens = batch.column("prompt_tokens").to_numpy().astype(np.int64)
        self.steps = batch.column("steps").to_numpy().astype(np.int64)
        self.tokens = _table_of(batch, identity.vocabulary_size)

    def addresses(self) -> list[bytes]:
        """The stored addresses of the rows."""
        return self._batch.column("key").to_pylist()

    def rows(self) -> list[tuple[Row, str]]:
        """Rows and their sources; only the tokens are decoded."""
        read = _Rows([(self, i) for i in range(len(self.steps))], self._identity)
        prompts = _split(read.tokens(self.prompt_tokens), self.prompt_tokens)
        responses = _split(read.tokens(self.steps), self.steps)
        for i, prompt in enumerate(prompts):
            prompts[i] = prompt or prompts[i - 1]
        ended, sources = (self._batch.column(n).to_pylist() for n in ("ended", "source"))
        rows = map(Row, prompts, responses, ended)
        return list(zip(rows, sources, strict=True))

    def incomplete(self) -> list[tuple[int, ...]]:
        """The steps of each row whose sets lack members that the teacher did not list."""
        if "incomplete" not in self._batch.schema.names:
            return [()] * len(self.steps)
        return [tuple(steps or ()) for steps in self._batch.column("incomplete").to_pylist()]

    def evidence(self) -> Evidence:
        """The evidence of all rows."""
        return decode_evidence([(self, i) for i in range(len(self.steps))], self._identity)


def _split(values: np.ndarray, counts: np.ndarray) -> list[tuple[int, ...]]:
    flat, ends = values.tolist(), np.cumsum(counts).tolist()
    return [tuple(flat[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def decode_evidence(places: Sequence[tuple[ShardReader, int]], identity: CacheIdentity) -> Evidence:
    """Evidence of rows of any shards, laid end to end.

    Raises:
        CacheError: if the bytes of a row are not what its streams need.
    """
    rows = _Rows(places, identity)
    streams, steps = rows.streams, rows.steps
    rows.tokens(rows.prompt_tokens)
    actions = rows.tokens(steps)
    sizes = streams.take(steps, *SET_SIZE).astype(np.int64) + 1
    stored = identity.normaliser
    normaliser = streams.take(steps, *NORMALISER) if stored else None
    first = streams.take(steps, *FIRST_LEVEL) << LEVEL_DELTA[0]
    members = _sums(sizes, steps)
    ids = rows.tokens(members)
    levels = _levels(streams, members, first, np.cumsum(sizes) - sizes)
    of_action = _action_levels(streams, steps, taken_members(actions, sizes, ids), levels)
    bits = token_bits(identity.vocabulary_size)
    tail = _tail(streams, steps, bits) if identity.tail_samples > 0 else None
    streams.finish()
    sets = TopPSets(_whole(ids), _log_probs(levels), _offsets(sizes))
    return Evidence(sets, _normaliser(normaliser, len(sizes)), _log_probs(of_action), tail)


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over the values of each row, given how many values it has."""
    return np.diff(
        np.concatenate([[0], np.cumsum(values, dtype=np.int64)])[np.cumsum(counts)], prepend=0
    )


def _whole(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))


def _offsets(sizes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))


def _log_probs(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(level_table().take(levels, mode="clip"))


def _normaliser(zigzag: np.ndarray | None, steps: int) -> torch.Tensor:
    """Log-normalisers, nats; not a number where the cache has none."""
    if zigzag is None:
        return torch.full((steps,), float("nan"))
    odd, half = (zigzag & 1).astype(bool), zigzag >> 1
    return torch.from_numpy((np.where(odd, -half - 1, half) * NORMALISER_STEP).astype(np.float32))


class _Rows:
    """The streams of rows of any shards, their tokens looked up in the table of their shard."""

    def __init__(self, places: Sequence[tuple[ShardReader, int]], identity: CacheIdentity) -> None:
        parts = [shard.data[shard.starts[i] : shard.stops[i]] for shard, i in places]
        stops = np.cumsum([0, *(len(part) for part in parts)])
        data = np.concatenate([np.zeros(0, dtype=np.uint8), *parts])
        self.streams = StreamReader(data, stops[:-1], stops[1:])
        self.prompt_tokens = np.array([s.prompt_tokens[i] for s, i in places], dtype=np.int64)
        self.steps = np.array([shard.steps[i] for shard, i in places], dtype=np.int64)
        self._widths = token_widths(identity.vocabulary_size)
        # Rows next to each other that share a table: it, and where they end.
        groups = [list(group) for _, group in groupby(places, key=lambda place: id(place[0]))]
        self._tables = [group[0][0].tokens for group in groups]
        self._ends = np.cumsum([len(group) for group in groups], dtype=np.int64)

    def tokens(self, counts: np.ndarray) -> np.ndarray:
        """The next stream, of so many tokens a row."""
        codes = self.streams.take(counts, self._widths[0])
        if len(self._widths) == 1:
            return codes
        itself = np.flatnonzero(codes == PLACES)
        rest = np.diff(np.searchsorted(itself, np.cumsum(counts)), prepend=0)
        found = np.empty(len(codes), dtype=np.int32)
        ends = np.cumsum(counts)[self._ends - 1]
        for table, start, stop in zip(self._tables, [0, *ends], ends, strict=False):
            np.take(table, codes[start:stop], out=found[start:stop], mode="clip")
        found[itself] = self.streams.take(rest, self._widths[1])
        return found


def _table_of(batch: pa.RecordBatch, vocabulary_size: int) -> np.ndarray:
    """The table, followed by one token that no code points to."""
    stored = batch.column("frequent").to_pylist() if "frequent" in batch.schema.names else []
    found = b"".join(stored)
    count, data = int.from_bytes(found[:4], "little"), np.frombuffer(found, dtype=np.uint8)
    streams = StreamReader(data, np.array([min(4, len(data))]), np.array([len(data)]))
    tokens = streams.take(np.array([count]), token_widths(vocabulary_size)[-1])
    streams.finish()
    return np.append(tokens, 0).astype(np.int32)


def _levels(
    streams: StreamReader, members: np.ndarray, first: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """One running sum over all rows: every first member takes back what came before it."""
    slots = streams.take(members, LEVEL_DELTA[0])
    first = first | slots[starts]
    slots[starts] = 0
    deltas = streams.patch(slots, members, *LEVEL_DELTA)
    last = first + np.add.reduceat(deltas, starts)
    deltas[starts] = np.diff(first, prepend=0)
    deltas[starts[1:]] -= (last - first)[:-1]
    return np.cumsum(deltas, out=deltas)


def _action_levels(
    streams: StreamReader, steps: np.ndarray, taken: tuple[np.ndarray, ...], levels: np.ndarray
) -> np.ndarray:
    """Levels of the actions: from their sets, or, outside these, from a stream of their own."""
    step, member = taken
    found = np.full(int(steps.sum()), -1, dtype=levels.dtype)
    found[step] = levels[member]
    missing = found < 0
    counts = np.add.reduceat(missing, np.cumsum(steps) - steps, dtype=np.int64)
    found[missing] = streams.take(counts, *OUTSIDE_LEVEL)
    return found


def _tail(streams: StreamReader, steps: np.ndarray, bits: int) -> Tail:
    sizes = streams.take(steps, *TAIL_SIZE)
    tokens = _sums(sizes, steps)
    ids = streams.take(tokens, bits)
    log_probs = _log_probs(streams.take(tokens, *TAIL_LEVEL))
    return Tail(_whole(ids), log_probs, _whole(streams.take(tokens, *TAIL_COUNT)), _offsets(sizes))
