"""Bytes to evidence: any number of rows, of any shards, decoded in one go."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from tdistill.core import TopPSets
from tdistill.errors import CacheError
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

_Tokens = tuple[int, ...]


class ShardReader:
    """An open shard; its bytes stay in the mapped file until they are decoded.

    Attributes:
        identity: of the cache.
        file: its bytes.
        data: the streams of all rows.
        starts: where those of each row begin.
        stops: where they end.
        prompt_tokens: of each row; 0 where the prompt is that of the row before.
        steps: of each row.
        tokens: the table of frequent tokens.
    """

    def __init__(self, batch: pa.RecordBatch, identity: CacheIdentity, file: pa.Buffer) -> None:
        self._batch, self.identity, self.file = batch, identity, file
        ends, self.data = _binary(batch.column("evidence"))
        self.starts, self.stops = ends[:-1], ends[1:]
        self.prompt_tokens = _values(batch.column("prompt_tokens"), "<u4")
        self.steps = _values(batch.column("steps"), "<u4")
        self.tokens = _table_of(batch)
        self._teachers: list[str] = batch.column("teacher").dictionary.to_pylist()

    def __len__(self) -> int:
        """Rows."""
        return len(self.steps)

    def address(self, row: int) -> bytes:
        """The stored address of a row."""
        return self._batch.column("key")[row].as_py()

    def addresses(self) -> list[bytes]:
        """The stored addresses of the rows."""
        return self._batch.column("key").to_pylist()

    def prefixes(self) -> np.ndarray:
        """The first 8 bytes of each address, as integers."""
        _, keys = self._batch.column("key").buffers()
        return np.frombuffer(keys, dtype="<u8")[: 2 * len(self) : 2].copy()

    def sources(self) -> list[str]:
        """Where each row came from."""
        return self._batch.column("source").to_pylist()

    def teacher(self, number: int) -> str:
        """The fingerprint of a row's teacher."""
        if len(self._teachers) == 1:
            return self._teachers[0]
        return self._batch.column("teacher")[number].as_py()

    def teachers(self) -> list[str]:
        """The fingerprint of each row's teacher."""
        return self._batch.column("teacher").to_pylist()

    def ended(self) -> np.ndarray:
        """Whether each row has ended."""
        bits = np.frombuffer(self._batch.column("ended").buffers()[1], dtype=np.uint8)
        return np.unpackbits(bits, count=len(self), bitorder="little").astype(bool)

    def rows(self, numbers: Sequence[int] | None = None) -> list[Row]:
        """Some rows, or all; only the tokens are decoded."""
        return rows_at(self.places(numbers), self.identity)

    def prompts(self) -> list[_Tokens]:
        """The prompts of all rows; no response is decoded."""
        places = self.places()
        return _prompts(places, _own_prompts(_Rows(places, self.identity)), self.identity)

    def prompt_row(self, number: int) -> int:
        """The row that has the prompt of a row: itself, or the nearest before it."""
        found = np.flatnonzero(self.prompt_tokens[: number + 1])
        if len(found) == 0:
            raise CacheError("a row without a prompt")
        return int(found[-1])

    def incomplete(self) -> list[_Tokens]:
        """The steps of each row whose sets lack members that the teacher did not list."""
        if "incomplete" not in self._batch.schema.names:
            return [()] * len(self)
        return [tuple(steps or ()) for steps in self._batch.column("incomplete").to_pylist()]

    def evidence(self) -> Evidence:
        """The evidence of all rows."""
        return decode_evidence(self.places(), self.identity)

    def places(self, numbers: Sequence[int] | None = None) -> list[Place]:
        """Some rows, or all, as places."""
        return [(self, number) for number in (range(len(self)) if numbers is None else numbers)]


Place = tuple[ShardReader, int]
"""A row: its shard, and its number there."""


def rows_at(places: Sequence[Place], identity: CacheIdentity) -> list[Row]:
    """Rows of any shards; only their tokens are decoded, all of them together."""
    read = _Rows(places, identity)
    own = _own_prompts(read)
    responses = _split(read.tokens(read.steps), read.steps)
    prompts, ended = _prompts(places, own, identity), _ended(places)
    columns = zip(prompts, responses, ended, places, strict=True)
    return [Row(p, r, e, teacher=place[0].teacher(place[1])) for p, r, e, place in columns]


def _own_prompts(read: _Rows) -> list[_Tokens]:
    """The prompts as stored: none where it is that of a row before."""
    return _split(read.tokens(read.prompt_tokens), read.prompt_tokens)


def _prompts(
    places: Sequence[Place], own: Sequence[_Tokens], identity: CacheIdentity
) -> list[_Tokens]:
    """The prompts, those of rows before decoded where they are not at hand."""
    known = {place: prompt for place, prompt in zip(places, own, strict=True) if prompt}
    owners = [p if p in known else (p[0], p[0].prompt_row(p[1])) for p in places]
    others = [place for place in dict.fromkeys(owners) if place not in known]
    if others:
        known |= zip(others, _own_prompts(_Rows(others, identity)), strict=True)
    return [known[place] for place in owners]


def _ended(places: Sequence[Place]) -> list[bool]:
    columns = {shard: shard.ended() for shard in dict.fromkeys(shard for shard, _ in places)}
    return [bool(columns[shard][number]) for shard, number in places]


def _split(values: np.ndarray, counts: np.ndarray) -> list[_Tokens]:
    flat, ends = values.tolist(), np.cumsum(counts).tolist()
    return [tuple(flat[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def decode_evidence(places: Sequence[Place], identity: CacheIdentity) -> Evidence:
    """Evidence of rows of any shards, laid end to end.

    Raises:
        CacheError: if the bytes of a row are not what its streams need.
    """
    return decode_steps(places, identity)[1]


def decode_steps(
    places: Sequence[Place], identity: CacheIdentity
) -> tuple[Int[Tensor, " T"], Evidence]:
    """The actions and the evidence of rows of any shards, laid end to end.

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
    found = Evidence(sets, _normaliser(normaliser, len(sizes)), _log_probs(of_action), tail)
    return _whole(actions), found


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

    def __init__(self, places: Sequence[Place], identity: CacheIdentity) -> None:
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
            table.take(codes[start:stop], out=found[start:stop], mode="clip")
        found[itself] = self.streams.take(rest, self._widths[1])
        return found


def _table_of(batch: pa.RecordBatch) -> np.ndarray:
    """The table, which ends with a token that no code points to."""
    if "frequent" not in batch.schema.names:
        return np.zeros(1, dtype="<i4")
    _, data = _binary(batch.column("frequent"))
    return data.view("<i4")


def _values(column: pa.Array, kind: str) -> np.ndarray:
    """The numbers of a column; `to_numpy` would load pandas, which takes a second and 27 MB."""
    return np.frombuffer(column.buffers()[1], dtype=kind)[: len(column)]


def _binary(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Where the values of a column begin and end, and their bytes."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, dtype="<i4")[: len(column) + 1]
    values = np.frombuffer(b"" if data is None else data, dtype=np.uint8)
    return ends, values[: ends[-1]]


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
