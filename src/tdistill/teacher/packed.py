"""Shards of format 3: one response a row, its evidence packed into bytes.

Each row holds these streams, one after the other, V being the size of the vocabulary and ``w/x``
meaning w bits, or x more where w do not suffice (see :mod:`tdistill.teacher.bits`):

- ``log2 V`` bits a token: the prompt (absent where it is that of the row before), the response;
- a step: the size of its set less 1 (8/16/32), the log-normaliser in steps of 1/512 nats (16/32), the
  level of the likeliest member without its lowest 4 bits (8/16);
- a member: its token (``log2 V``), and how many levels it is below the member before (4/8/16), or
  the lowest 4 bits of its level where it is the first;
- a step whose action is not in its set: the level of that (12/16); the others have it in the set;
- with sampled tails, a step: their number (8); a tail token: token (``log2 V``), level (12/16),
  how often it was drawn (4/8).

Levels are those of :mod:`tdistill.teacher.grid`. Any number of rows is decoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tdistill.core import TopPSets
from tdistill.errors import CacheError
from tdistill.teacher.bits import Packer, Unpacker
from tdistill.teacher.evidence import Evidence, Row
from tdistill.teacher.grid import NORMALISER_STEP, level_table, levels_of
from tdistill.teacher.manifest import CacheIdentity
from tdistill.teacher.record import Record, row_key
from tdistill.teacher.tail import Tail

_SIZE, _NORMALISER, _FIRST = (8, 16, 32), (16, 32), (8, 16)
_DELTA, _OUTSIDE = (4, 8, 16), (12, 16)
_TAIL_SIZE, _TAIL_LEVEL, _TAIL_COUNT = (8,), (12, 16), (4, 8)
_LOW = (1 << _DELTA[0]) - 1


def token_bits(vocabulary_size: int) -> int:
    """Bits of a token.

    Example:
        >>> [token_bits(v) for v in (2, 49_152, 65_536, 65_537, 151_936)]
        [1, 16, 16, 17, 18]
    """
    return max(1, (vocabulary_size - 1).bit_length())


def packed_batch(records: Sequence[Record], identity: CacheIdentity) -> pa.RecordBatch:
    """The columns of a shard.

    Raises:
        CacheError: for evidence that is not as captured: a set that is empty or not in descending
            order, log-probabilities that are not rounded, a token outside the vocabulary, no tail.
    """
    before = [(), *(r.row.prompt_ids for r in records)]
    prompts = [
        () if r.row.prompt_ids == b else r.row.prompt_ids
        for r, b in zip(records, before, strict=False)
    ]
    packed = [_packed_row(r, p, identity) for r, p in zip(records, prompts, strict=True)]
    return pa.record_batch(
        {
            "key": pa.array([row_key(r.row) for r in records], type=pa.binary(16)),
            "source": pa.array([r.source for r in records], type=pa.string()),
            "ended": pa.array([r.row.ended for r in records], type=pa.bool_()),
            "prompt_tokens": pa.array([len(p) for p in prompts], type=pa.uint32()),
            "steps": pa.array([len(r.row.response_ids) for r in records], type=pa.uint32()),
            "evidence": pa.array(packed, type=pa.binary()),
        }
    )


def _packed_row(record: Record, prompt: Sequence[int], identity: CacheIdentity) -> bytes:
    evidence, packer = record.evidence, Packer()
    bits = token_bits(identity.vocabulary_size)
    actions = np.asarray(record.row.response_ids, dtype=np.int64)
    sizes, ids = evidence.sets.sizes.numpy(), evidence.sets.ids.numpy()
    tokens = [np.asarray(prompt, dtype=np.int64), actions, ids]
    if len(sizes) != len(actions) or (sizes < 1).any():
        _refuse(f"a set of at least one token for each of {len(actions)} steps")
    if not all(((t >= 0) & (t < identity.vocabulary_size)).all() for t in tokens):
        _refuse(f"tokens of a vocabulary of {identity.vocabulary_size}")
    levels = _exact_levels(evidence.sets.log_probs)
    starts = np.cumsum(sizes) - sizes
    first, deltas = levels[starts], np.diff(levels, prepend=0)
    deltas[starts] = 0
    if (deltas < 0).any():
        _refuse("sets in descending order")
    packer.add(tokens[0], bits)
    packer.add(actions, bits)
    packer.add(sizes - 1, *_SIZE)
    packer.add(_zigzag(evidence.log_normaliser), *_NORMALISER)
    packer.add(first >> _DELTA[0], *_FIRST)
    packer.add(ids, bits)
    slots = np.minimum(deltas, _LOW)
    slots[starts] = first & _LOW
    packer.add(slots, _DELTA[0])
    packer.add(deltas[deltas >= _LOW] - _LOW, *_DELTA[1:])
    of_action = _exact_levels(evidence.action_log_prob)
    packer.add(_outside(actions, of_action, sizes, ids, levels), *_OUTSIDE)
    if identity.tail_samples > 0:
        _pack_tail(packer, evidence.tail, identity.tail_samples, bits)
    return packer.bytes()


def _outside(
    actions: np.ndarray, of_action: np.ndarray, sizes: np.ndarray, ids: np.ndarray, of: np.ndarray
) -> np.ndarray:
    """Levels of the actions that are not in their set; the others must be those of the set."""
    step, member = _taken(actions, sizes, ids)
    if (of[member] != of_action[step]).any():
        _refuse("one log-probability for a response token, in its set and as the action")
    return np.delete(of_action, step)


def _taken(actions: np.ndarray, sizes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, ...]:
    """Steps whose action is a member of their set, and which member it is."""
    member = np.flatnonzero(ids == np.repeat(actions, sizes))
    return np.searchsorted(np.cumsum(sizes), member, side="right"), member


def _pack_tail(packer: Packer, tail: Tail | None, samples: int, bits: int) -> None:
    if tail is None:
        raise CacheError(
            f"expected {samples} tail samples a step, found a response without; "
            "capture it with the settings of the cache"
        )
    packer.add(tail.sizes.numpy(), *_TAIL_SIZE)
    packer.add(tail.ids.numpy(), bits)
    packer.add(_exact_levels(tail.log_probs), *_TAIL_LEVEL)
    packer.add(tail.counts.numpy(), *_TAIL_COUNT)


def _exact_levels(log_probs: torch.Tensor) -> np.ndarray:
    levels = levels_of(log_probs.numpy())
    if not np.array_equal(level_table()[levels], log_probs.numpy()):
        _refuse("log-probabilities rounded by tdistill.teacher.grid.round_log_probs")
    return levels


def _zigzag(log_normaliser: torch.Tensor) -> np.ndarray:
    steps = log_normaliser.numpy().astype(np.float64) / NORMALISER_STEP
    whole = np.nan_to_num(np.rint(steps)).astype(np.int64)
    if not np.array_equal(whole, steps):
        _refuse("log-normalisers rounded by tdistill.teacher.grid.round_normaliser")
    return np.where(whole < 0, -2 * whole - 1, 2 * whole)


def _refuse(expected: str) -> None:
    raise CacheError(
        f"a response to be cached: expected {expected}, found others; capture its evidence with "
        "tdistill.teacher.evidence.capture"
    )


def member_bytes(sets: TopPSets, vocabulary_size: int) -> float:
    """What the members of these sets take in a shard."""
    deltas = np.diff(levels_of(sets.log_probs.numpy()), prepend=0)
    deltas[sets.offsets[:-1].numpy()] = 0
    bits = (token_bits(vocabulary_size) + _DELTA[0]) * len(deltas)
    for width, wider in pairwise(_DELTA):
        deltas = deltas[deltas >= (1 << width) - 1] - ((1 << width) - 1)
        bits += wider * len(deltas)
    return bits / 8


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

    def addresses(self) -> list[bytes]:
        """The stored addresses."""
        return self._batch.column("key").to_pylist()

    def rows(self) -> list[tuple[Row, str]]:
        """Rows and their sources; only the tokens are decoded."""
        bits = token_bits(self._identity.vocabulary_size)
        packed = Unpacker(self.data, self.starts, self.stops)
        prompts = _split(packed.take(self.prompt_tokens, bits), self.prompt_tokens)
        responses = _split(packed.take(self.steps, bits), self.steps)
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
    bits, packed, prompts, steps = token_bits(identity.vocabulary_size), *_collected(places)
    packed.skip(prompts, bits)
    actions = packed.take(steps, bits)
    sizes = packed.take(steps, *_SIZE).astype(np.int64) + 1
    normaliser = packed.take(steps, *_NORMALISER)
    first = packed.take(steps, *_FIRST) << _DELTA[0]
    ends = np.cumsum(sizes)
    members = np.diff(np.concatenate([[0], ends])[np.cumsum(steps)], prepend=0)
    ids = packed.take(members, bits)
    levels = _levels(packed, members, first, ends)
    step, member = _taken(actions, sizes, ids)
    of_action = np.full(len(actions), -1, dtype=levels.dtype)
    of_action[step] = levels[member]
    missing = of_action < 0
    counts = np.add.reduceat(missing, np.cumsum(steps) - steps, dtype=np.int64)
    of_action[missing] = packed.take(counts, *_OUTSIDE)
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


def _collected(
    places: Sequence[tuple[PackedShard, int]],
) -> tuple[Unpacker, np.ndarray, np.ndarray]:
    parts = [shard.data[shard.starts[i] : shard.stops[i]] for shard, i in places]
    stops = np.cumsum([len(part) for part in parts])
    data, starts = np.concatenate(parts), np.concatenate([[0], stops[:-1]])
    prompts, steps = (
        np.array([getattr(shard, name)[i] for shard, i in places])
        for name in ("prompt_tokens", "steps")
    )
    return Unpacker(data, starts, stops), prompts, steps


def _levels(
    packed: Unpacker, members: np.ndarray, first: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """One running sum over all rows: every first member takes back what came before it."""
    slots = packed.take(members, _DELTA[0])
    starts = np.concatenate([[0], ends[:-1]])
    first = first | slots[starts]
    slots[starts] = 0
    deltas = packed.patch(slots, members, *_DELTA)
    last = first + np.add.reduceat(deltas, starts)
    deltas[starts] = np.diff(first, prepend=0)
    deltas[starts[1:]] -= (last - first)[:-1]
    return np.cumsum(deltas, out=deltas)


def _tails(packed: Unpacker, steps: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    sizes = packed.take(steps, *_TAIL_SIZE)
    ends = np.cumsum(sizes, dtype=np.int64)
    tokens = np.diff(np.concatenate([[0], ends])[np.cumsum(steps)], prepend=0)
    ids = packed.take(tokens, bits)
    levels = packed.take(tokens, *_TAIL_LEVEL)
    counts = packed.take(tokens, *_TAIL_COUNT)
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
