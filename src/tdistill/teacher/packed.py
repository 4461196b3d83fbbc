"""Reads shards of format 3: any number of rows, of any shards, decoded in one go."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tdistill.core import TopPSets
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row
from tdistill.evidence.tail import Tail
from tdistill.teacher.bits import Unpacker
from tdistill.teacher.layout import (
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
from tdistill.teacher.manifest import CacheIdentity
from tdistill.teacher.rounding import NORMALISER_STEP, level_table


class PackedShard:
    """An open shard of format 3; its bytes stay in the mapped file until they are decoded."""

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
        """The stored addresses."""
        return self._batch.column("key").to_pylist()

    def rows(self) -> list[tuple[Row, str]]:
        """Rows and their sources; only the tokens are decoded."""
        read = _Reader([(self, i) for i in range(len(self.steps))], self._identity)
        prompts = _split(read.tokens(self.prompt_tokens), self.prompt_tokens)
        responses = _split(read.tokens(self.steps), self.steps)
        for i, prompt in enumerate(prompts):
            prompts[i] = prompt or prompts[i - 1]
        ended, sources = (self._batch.column(n).to_pylist() for n in ("ended", "source"))
        rows = map(Row, prompts, responses, ended)
        return list(zip(rows, sources, strict=True))

    def columns(self) -> dict[str, Any]:
        """The numbers of all rows as arrays; see :meth:`Cache.shard_columns`."""
        decoded = decode_rows([(self, i) for i in range(len(self.steps))], self._identity)
        ended = np.asarray(self._batch.column("ended").to_pylist(), dtype=bool)
        return {**decoded, "lengths": self.steps, "ended": ended}


def _split(values: np.ndarray, counts: np.ndarray) -> list[tuple[int, ...]]:
    flat, ends = values.tolist(), np.cumsum(counts).tolist()
    return [tuple(flat[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def decode_rows(
    places: Sequence[tuple[PackedShard, int]], identity: CacheIdentity
) -> dict[str, np.ndarray]:
    """Evidence of rows of any shards, decoded in one go, laid end to end.

    Raises:
        CacheError: if the bytes of a row are not what its streams need.
    """
    read = _Reader(places, identity)
    packed, steps = read.packed, read.steps
    read.tokens(read.prompt_tokens)
    actions = read.tokens(steps)
    sizes = packed.take(steps, *SET_SIZE).astype(np.int64) + 1
    normaliser = packed.take(steps, *NORMALISER)
    first = packed.take(steps, *FIRST_LEVEL) << LEVEL_DELTA[0]
    ends = np.cumsum(sizes)
    members = np.diff(np.concatenate([[0], ends])[np.cumsum(steps)], prepend=0)
    ids = read.tokens(members)
    levels = _levels(packed, members, first, ends - sizes)
    step, member = taken_members(actions, sizes, ids)
    of_action = np.full(len(actions), -1, dtype=levels.dtype)
    of_action[step] = levels[member]
    missing = of_action < 0
    counts = np.add.reduceat(missing, np.cumsum(steps) - steps, dtype=np.int64)
    of_action[missing] = packed.take(counts, *OUTSIDE_LEVEL)
    bits = token_bits(identity.vocabulary_size)
    tails = _tails(packed, steps, bits) if identity.tail_samples > 0 else {}
    packed.finish()
    odd = (normaliser & 1).astype(bool)
    whole = np.where(odd, -(normaliser >> 1) - 1, normaliser >> 1)
    return {
        "response_ids": actions,
        "set_sizes": sizes,
        "set_ids": ids,
        "set_log_probs": level_table().take(levels, mode="clip"),
        "log_normaliser": (whole * NORMALISER_STEP).astype(np.float32),
        "action_log_prob": level_table().take(of_action, mode="clip"),
        **tails,
    }


class _Reader:
    """The streams of rows of any shards, their tokens looked up in the table of their shard."""

    def __init__(self, places: Sequence[tuple[PackedShard, int]], identity: CacheIdentity) -> None:
        parts = [shard.data[shard.starts[i] : shard.stops[i]] for shard, i in places]
        stops = np.cumsum([0, *(len(part) for part in parts)])
        data = np.concatenate([np.zeros(0, dtype=np.uint8), *parts])
        self.packed = Unpacker(data, stops[:-1], stops[1:])
        self.prompt_tokens = np.array([s.prompt_tokens[i] for s, i in places], dtype=np.int64)
        self.steps = np.array([shard.steps[i] for shard, i in places], dtype=np.int64)
        self._widths = token_widths(identity.vocabulary_size)
        # Rows next to each other that share a table: it, and where they end.
        groups = [list(group) for _, group in groupby(places, key=lambda place: id(place[0]))]
        self._tables = [group[0][0].tokens for group in groups]
        self._ends = np.cumsum([len(group) for group in groups], dtype=np.int64)

    def tokens(self, counts: np.ndarray) -> np.ndarray:
        """The next stream, of so many tokens a row."""
        codes = self.packed.take(counts, self._widths[0])
        if len(self._widths) == 1:
            return codes
        itself = np.flatnonzero(codes == PLACES)
        rest = np.diff(np.searchsorted(itself, np.cumsum(counts)), prepend=0)
        found = np.empty(len(codes), dtype=np.int32)
        ends = np.cumsum(counts)[self._ends - 1]
        for table, start, stop in zip(self._tables, [0, *ends], ends, strict=False):
            np.take(table, codes[start:stop], out=found[start:stop], mode="clip")
        found[itself] = self.packed.take(rest, self._widths[1])
        return found


def _table_of(batch: pa.RecordBatch, vocabulary_size: int) -> np.ndarray:
    """The table, followed by one token that no code points to."""
    stored = batch.column("frequent").to_pylist() if "frequent" in batch.schema.names else []
    found = b"".join(stored)
    count, data = int.from_bytes(found[:4], "little"), np.frombuffer(found, dtype=np.uint8)
    packed = Unpacker(data, np.array([min(4, len(data))]), np.array([len(data)]))
    tokens = packed.take(np.array([count]), token_widths(vocabulary_size)[-1])
    packed.finish()
    return np.append(tokens, 0).astype(np.int32)


def _levels(
    packed: Unpacker, members: np.ndarray, first: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """One running sum over all rows: every first member takes back what came before it."""
    slots = packed.take(members, LEVEL_DELTA[0])
    first = first | slots[starts]
    slots[starts] = 0
    deltas = packed.patch(slots, members, *LEVEL_DELTA)
    last = first + np.add.reduceat(deltas, starts)
    deltas[starts] = np.diff(first, prepend=0)
    deltas[starts[1:]] -= (last - first)[:-1]
    return np.cumsum(deltas, out=deltas)


def _tails(packed: Unpacker, steps: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    sizes = packed.take(steps, *TAIL_SIZE)
    ends = np.cumsum(sizes, dtype=np.int64)
    tokens = np.diff(np.concatenate([[0], ends])[np.cumsum(steps)], prepend=0)
    ids = packed.take(tokens, bits)
    levels = packed.take(tokens, *TAIL_LEVEL)
    counts = packed.take(tokens, *TAIL_COUNT)
    log_probs = level_table().take(levels, mode="clip")
    names = ("tail_sizes", "tail_ids", "tail_log_probs", "tail_counts")
    return dict(zip(names, (sizes, ids, log_probs, counts), strict=True))


def evidence_of(columns: dict[str, np.ndarray]) -> Evidence:
    """Columns, decoded or of an older format, as tensors."""

    def whole(name: str) -> torch.Tensor:
        return torch.from_numpy(columns[name].astype(np.int64))

    def real(name: str) -> torch.Tensor:
        return torch.from_numpy(columns[name].astype(np.float32))

    def offsets(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(columns[name], dtype=np.int64)]))

    sets = TopPSets(whole("set_ids"), real("set_log_probs"), offsets("set_sizes"))
    tail = None
    if "tail_sizes" in columns:
        numbers = whole("tail_ids"), real("tail_log_probs"), whole("tail_counts")
        tail = Tail(*numbers, offsets("tail_sizes"))
    return Evidence(sets, real("log_normaliser"), real("action_log_prob"), tail)
