"""Finds what a checksum cannot: shards written, or altered, wrongly as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tdistill.core import TopPSets, segment_cumsum
from tdistill.errors import CacheError, InvalidValueError
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row, row_key
from tdistill.evidence.tail import Tail
from tdistill.teacher.cache.manifest import CacheIdentity, Manifest, Shard
from tdistill.teacher.cache.open_shards import decoding
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.row_decoder import ShardReader

_ROUNDED = 0.005  # of the mass: stored log-probabilities are rounded


def verify_cache(cache: Cache) -> list[str]:
    """Problems inside shards that have the right checksum; an empty list means none.

    A cache that was opened with ``again`` has sizes and checksums compared already; decoding cannot
    give an empty set, a set out of order, a log-probability above 0, or two of them for one token.
    """
    problems = []
    for listed, shard in zip(cache.manifest.shards, cache.shards(), strict=True):
        try:
            with decoding(cache.folder / listed.name):
                checks = _checks(shard, listed, cache.manifest)
        except (CacheError, InvalidValueError) as error:  # bytes that are no rows
            checks = {f"a row that cannot be read: {error}": True}
        problems += [f"{listed.name}: {text}" for text, found in checks.items() if found]
    return problems


def _checks(shard: ShardReader, listed: Shard, manifest: Manifest) -> dict[str, bool]:
    identity, known = manifest.identity, set(manifest.teachers)
    rows, evidence = shard.rows(), shard.evidence()
    keys = [row_key(row) for row in rows]
    checks = {
        **_counts(listed, rows, evidence),
        **_tokens(rows, evidence, identity.vocabulary_size),
        **_claims(evidence.sets, identity, _marked(shard)),
        "a row whose key is not that of its tokens": keys != shard.addresses(),
        "a row of a teacher that the manifest does not name": not known.issuperset(
            shard.teachers()
        ),
    }
    return checks if evidence.tail is None else checks | _tails(evidence, evidence.tail, identity)


def _counts(listed: Shard, rows: Sequence[Row], evidence: Evidence) -> dict[str, bool]:
    tail_tokens = 0 if evidence.tail is None else len(evidence.tail.ids)
    return {
        "row count differs from the manifest": len(rows) != listed.rows,
        "step count differs from the manifest": len(evidence.sets) != listed.steps,
        "member count differs from the manifest": len(evidence.sets.ids) != listed.members,
        "tail token count differs from the manifest": tail_tokens != listed.tail_tokens,
    }


def _tokens(rows: Sequence[Row], evidence: Evidence, vocabulary: int) -> dict[str, bool]:
    members = evidence.sets.ids
    ids = torch.tensor([token for row in rows for token in row.prompt_ids + row.response_ids])
    outside = [(part < 0) | (part >= vocabulary) for part in (members, ids)]
    return {
        "a token id outside the vocabulary": any(bool(part.any()) for part in outside),
        "a token twice in one set": _repeats(evidence.sets.step, members),
    }


def _marked(shard: ShardReader) -> Tensor:
    """Whether each step is marked as having an incomplete set."""
    marked = torch.zeros(int(shard.steps.sum()), dtype=torch.bool)
    firsts = (shard.steps.cumsum(dtype=np.int64) - shard.steps).tolist()
    for first, count, places in zip(firsts, shard.steps, shard.incomplete(), strict=True):
        if places and max(places) >= count:
            raise CacheError("a mark of a step that its row does not have")
        marked[[first + place for place in places]] = True
    return marked


def _claims(sets: TopPSets, identity: CacheIdentity, marked: Tensor) -> dict[str, bool]:
    """What the manifest says of the capture, against the sets: each ends where its mass reaches p.

    A cap or a least gain may end it before, and a mark says that no more tokens were listed.
    """
    p, cap = identity.captured_top_p, identity.max_set_size
    before = segment_cumsum(sets.log_probs.double().exp(), sets.offsets)
    last = sets.offsets[1:] - 1
    reached = before[last]
    without_last = reached - sets.log_probs[last].double().exp()
    short = reached < p * (1 - _ROUNDED)
    if cap is not None:
        short &= sets.sizes < cap
    checks = {
        f"a set that goes on where its mass has reached the captured {p:g}": bool(
            (without_last > p * (1 + _ROUNDED)).any()
        ),
        f"a set larger than the cap of {cap}": cap is not None and bool((sets.sizes > cap).any()),
    }
    if identity.min_gain is None:
        checks[f"a set of less mass than the captured {p:g}"] = bool((short & ~marked).any())
    whole = reached >= p * (1 + _ROUNDED)
    checks["a set marked as incomplete that is whole"] = bool((whole & marked).any())
    return checks


def _tails(evidence: Evidence, tail: Tail, identity: CacheIdentity) -> dict[str, bool]:
    sets, draws = evidence.sets, identity.tail_samples
    drawn = torch.zeros_like(tail.sizes).index_add(0, tail.step, tail.counts)
    least = sets.log_probs[sets.offsets[1:] - 1]
    inside = torch.isin(_places(tail.step, tail.ids), _places(sets.step, sets.ids))
    return {
        "a tail token outside the vocabulary": bool((tail.ids >= identity.vocabulary_size).any()),
        "a tail token twice in one step": _repeats(tail.step, tail.ids),
        "a tail token that is in the set": bool(inside.any()),
        "a tail token likelier than the set": bool((tail.log_probs > least[tail.step]).any()),
        f"a step without {draws} tail draws": bool(((drawn != 0) & (drawn != draws)).any()),
    }


def _places(step: Tensor, token: Tensor) -> Tensor:
    return step * (1 << 32) + token


def _repeats(step: Tensor, token: Tensor) -> bool:
    return len(_places(step, token).unique()) < len(token)
