"""Evidence to bytes: the streams that :mod:`tdistill.teacher.cache.row_layout` lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tdistill.errors import CacheError
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row, row_key
from tdistill.evidence.tail import Tail
from tdistill.teacher.cache.bit_streams import StreamWriter
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.rounding import NORMALISER_STEP, level_table, levels_of
from tdistill.teacher.cache.row_layout import (
    FIRST_LEVEL,
    LEVEL_DELTA,
    LOWEST,
    NORMALISER,
    OUTSIDE_LEVEL,
    PLACES,
    SET_SIZE,
    TAIL_COUNT,
    TAIL_LEVEL,
    TAIL_SIZE,
    frequent_tokens,
    taken_members,
    token_bits,
    token_widths,
)

COLUMNS = {
    "key": pa.binary(16),
    "source": pa.string(),
    "teacher": pa.dictionary(pa.int8(), pa.string()),
    "ended": pa.bool_(),
    "prompt_tokens": pa.uint32(),
    "steps": pa.uint32(),
    "evidence": pa.binary(),
}
"""Of every shard, a value a row; ``incomplete`` and ``frequent`` are there where needed."""


@dataclass(frozen=True, eq=False)
class CachedResponse:
    """A response with its evidence and where it came from (``rollout:0``, ``score``).

    Attributes:
        row: the response.
        evidence: the teacher at each of its steps.
        source: where it came from.
        incomplete: the steps whose sets lack members, because the teacher did not list them.
    """

    row: Row
    evidence: Evidence
    source: str
    incomplete: tuple[int, ...] = ()


def encode_rows(responses: Sequence[CachedResponse], identity: CacheIdentity) -> pa.RecordBatch:
    """The columns of a shard.

    Raises:
        CacheError: for evidence that is not as captured: a set that is empty or not in descending
            order, log-probabilities that are not rounded, a token outside the vocabulary, no tail.
    """
    before = [(), *(r.row.prompt_ids for r in responses)]
    prompts = [
        () if r.row.prompt_ids == b else r.row.prompt_ids
        for r, b in zip(responses, before, strict=False)
    ]
    codes, table = _codes(responses, prompts, identity.vocabulary_size)
    encoded = [_encoded(r, p, identity, codes) for r, p in zip(responses, prompts, strict=True)]
    values: dict[str, Sequence[Any]] = {
        "key": [row_key(r.row) for r in responses],
        "source": [r.source for r in responses],
        "teacher": [identity.teacher_fingerprint] * len(responses),
        "ended": [r.row.ended for r in responses],
        "prompt_tokens": [len(p) for p in prompts],
        "steps": [len(r.row.response_ids) for r in responses],
        "evidence": encoded,
    }
    columns = {name: pa.array(values[name], type=kind) for name, kind in COLUMNS.items()}
    if identity.listed_tokens is not None:
        marks = [r.incomplete for r in responses]
        columns["incomplete"] = pa.array(marks, type=pa.list_(pa.uint32()))
    elif any(r.incomplete for r in responses):
        _refuse("complete sets")
    if table:
        whole = [table, *(b"" for _ in responses)][: len(responses)]  # with the first row
        columns["frequent"] = pa.array(whole, type=pa.binary())
    return pa.record_batch(columns)


def _codes(
    responses: Sequence[CachedResponse], prompts: Sequence[Sequence[int]], vocabulary_size: int
) -> tuple[np.ndarray, bytes]:
    """What each token of the vocabulary is stored as, and the table that turns it back."""
    tokens = np.arange(vocabulary_size)
    widths = token_widths(vocabulary_size)
    if len(widths) == 1:
        return tokens, b""
    parts = [np.asarray(r.row.response_ids) for r in responses]
    parts += [np.asarray(p, dtype=np.int64) for p in prompts]
    parts += [r.evidence.sets.ids.numpy() for r in responses]
    used = np.concatenate([tokens[:0], *parts])
    table = frequent_tokens(used[(used >= 0) & (used < vocabulary_size)])
    codes = tokens + PLACES
    codes[table] = np.arange(len(table))
    return codes, np.append(table, 0).astype("<i4").tobytes()  # a reader looks up one more


def _encoded(
    response: CachedResponse, prompt: Sequence[int], identity: CacheIdentity, codes: np.ndarray
) -> bytes:
    evidence, out = response.evidence, StreamWriter()
    actions = np.asarray(response.row.response_ids, dtype=np.int64)
    tokens = [np.asarray(prompt, dtype=np.int64), actions, evidence.sets.ids.numpy()]
    sizes = evidence.sets.sizes.numpy()
    if len(sizes) != len(actions) or (sizes < 1).any():
        _refuse(f"a set of at least one token for each of {len(actions)} steps")
    if not all(((t >= 0) & (t < identity.vocabulary_size)).all() for t in tokens):
        _refuse(f"tokens of a vocabulary of {identity.vocabulary_size}")
    prompt_codes, action_codes, set_codes = (codes[t] for t in tokens)
    levels, widths = _exact_levels(evidence.sets.log_probs), token_widths(identity.vocabulary_size)
    starts = np.cumsum(sizes) - sizes
    out.add(prompt_codes, *widths)
    out.add(action_codes, *widths)
    out.add(sizes - 1, *SET_SIZE)
    if identity.normaliser:
        out.add(_zigzag(evidence.log_normaliser), *NORMALISER)
    out.add(levels[starts] >> LEVEL_DELTA[0], *FIRST_LEVEL)
    out.add(set_codes, *widths)
    _encode_levels(out, levels, starts)
    of_action = _exact_levels(evidence.action_log_prob)
    out.add(_outside(actions, of_action, sizes, tokens[2], levels), *OUTSIDE_LEVEL)
    if identity.tail_samples > 0:
        bits = token_bits(identity.vocabulary_size)
        _encode_tail(out, evidence.tail, identity.tail_samples, bits)
    return out.bytes()


def _encode_levels(out: StreamWriter, levels: np.ndarray, starts: np.ndarray) -> None:
    """Differences within a set; in the slot of its first member, the lowest bits of its level."""
    deltas = np.diff(levels, prepend=0)
    deltas[starts] = 0
    if (deltas < 0).any():
        _refuse("sets in descending order")
    slots = np.minimum(deltas, LOWEST)
    slots[starts] = levels[starts] & LOWEST
    out.add(slots, LEVEL_DELTA[0])
    out.add(deltas[deltas >= LOWEST] - LOWEST, *LEVEL_DELTA[1:])


def _outside(
    actions: np.ndarray, of_action: np.ndarray, sizes: np.ndarray, ids: np.ndarray, of: np.ndarray
) -> np.ndarray:
    """Levels of the actions that are not in their set; the others must be those of the set."""
    step, member = taken_members(actions, sizes, ids)
    if (of[member] != of_action[step]).any():
        _refuse("one log-probability for a response token, in its set and as the action")
    return np.delete(of_action, step)


def _encode_tail(out: StreamWriter, tail: Tail | None, samples: int, bits: int) -> None:
    if tail is None:
        raise CacheError(
            f"expected {samples} tail samples a step, found a response without; "
            "capture it with the settings of the cache"
        )
    out.add(tail.sizes.numpy(), *TAIL_SIZE)
    out.add(tail.ids.numpy(), bits)
    out.add(_exact_levels(tail.log_probs), *TAIL_LEVEL)
    out.add(tail.counts.numpy(), *TAIL_COUNT)


def _exact_levels(log_probs: torch.Tensor) -> np.ndarray:
    levels = levels_of(log_probs.numpy())
    if not np.array_equal(level_table()[levels], log_probs.numpy()):
        _refuse("log-probabilities rounded by tdistill.teacher.cache.rounding.round_log_probs")
    return levels


def _zigzag(log_normaliser: torch.Tensor) -> np.ndarray:
    steps = log_normaliser.numpy().astype(np.float64) / NORMALISER_STEP
    whole = np.nan_to_num(np.rint(steps)).astype(np.int64)
    if not np.array_equal(whole, steps):
        _refuse("log-normalisers rounded by tdistill.teacher.cache.rounding.round_normaliser")
    return np.where(whole < 0, -2 * whole - 1, 2 * whole)


def _refuse(expected: str) -> None:
    raise CacheError(
        f"a response to be cached: expected {expected}, found others; capture its evidence with "
        "tdistill.evidence.evidence.capture"
    )
