"""Rows as bytes: evidence comes back exactly; what is not as captured is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from tdistill.core import TopPSets
from tdistill.errors import CacheError
from tdistill.evidence.evidence import Evidence, concatenate
from tdistill.evidence.rows import Row
from tdistill.evidence.tail import Tail
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.rounding import level_table, round_log_probs, round_normaliser
from tdistill.teacher.cache.row_decoder import ShardReader, decode_evidence
from tdistill.teacher.cache.row_encoder import CachedResponse, encode_rows
from teaching import IDENTITY, assert_equal


def any_record(seed: int, vocabulary: int, *, largest: int, tails: int = 0) -> CachedResponse:
    """Sets of 1 to ``largest`` members, ties, level 0, and log-probabilities down to -60."""
    g = torch.Generator().manual_seed(seed)
    steps = int(torch.randint(1, 12, (1,), generator=g))
    chosen, values, sizes, actions, of_action = [], [], [], [], []
    for t in range(steps):
        size = 1 if t == 0 else int(torch.randint(1, largest + 1, (1,), generator=g))
        order = torch.randperm(vocabulary, generator=g)
        scale = (0.001, 1.0, 20.0, 60.0)[(seed + t) % 4]
        depth = scale * torch.rand(vocabulary, generator=g).sort().values
        log_probs = round_log_probs(-depth if t % 2 else -(depth * 4).round() / 4)
        chosen.append(order[:size])
        values.append(log_probs[:size])
        sizes.append(size)
        place = int(torch.randint(0, min(2 * size, vocabulary), (1,), generator=g))
        actions.append(int(order[place]))
        of_action.append(float(log_probs[place]))
    count = torch.tensor(sizes)
    offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
    normaliser = round_normaliser(70.0 * torch.randn(steps, generator=g))
    sets = TopPSets(torch.cat(chosen), torch.cat(values), offsets)
    tail = None
    if tails:
        number = torch.randint(0, 4, (steps,), generator=g)
        total = int(number.sum())
        tail = Tail(
            torch.randint(0, vocabulary, (total,), generator=g),
            round_log_probs(-60.0 * torch.rand(total, generator=g)),
            torch.randint(1, tails + 1, (total,), generator=g),
            torch.cat([number.new_zeros(1), number.cumsum(0)]),
        )
    evidence = Evidence(sets, normaliser, torch.tensor(of_action), tail)
    prompt = tuple(torch.randint(0, vocabulary, (seed % 3 + 1,), generator=g).tolist())
    return CachedResponse(Row(prompt, tuple(actions), seed % 2 == 0), evidence, f"rollout:{seed}")


def stored(records: list[CachedResponse], identity: CacheIdentity) -> ShardReader:
    return ShardReader(encode_rows(records, identity), identity, pa.py_buffer(b""))


@pytest.mark.parametrize("tails", [0, 255])
@pytest.mark.parametrize("vocabulary", [2, 64, 65, 4096, 49_152, 65_536, 65_537, 1 << 18])
def test_evidence_comes_back_exactly(vocabulary: int, tails: int):
    identity = replace(IDENTITY, vocabulary_size=vocabulary, tail_samples=tails)
    largest = min(vocabulary, 3000) if vocabulary < 1 << 17 else 40
    records = [any_record(s, vocabulary, largest=largest, tails=tails) for s in range(6)]
    records.insert(2, records[1])  # the same prompt twice
    one, other = stored(records[:3], identity), stored(records[3:], identity)
    assert one.rows() == [r.row for r in records[:3]]
    assert one.prompts() == [r.row.prompt_ids for r in records[:3]]
    assert one.sources() == [r.source for r in records[:3]]
    places = [(one, 0), (one, 1), (one, 2), *((other, i) for i in range(4))]
    for order in (range(7), (6, 0, 3, 3), (4,)):
        found = decode_evidence([places[i] for i in order], identity)
        expected = concatenate([records[i].evidence for i in order])
        assert_equal(found, expected)
        if tails:
            assert found.tail is not None
            assert expected.tail is not None
            for name in ("ids", "log_probs", "counts", "offsets"):
                assert torch.equal(getattr(found.tail, name), getattr(expected.tail, name))


def test_all_levels_and_the_whole_vocabulary_can_be_stored():
    ids, log_probs = torch.arange(1 << 16), torch.from_numpy(level_table())
    sets = TopPSets(ids, log_probs, torch.tensor([0, 1 << 16]))
    widest = CachedResponse(
        Row((1,), (65_535,), False),
        Evidence(sets, torch.tensor([-8192.0]), log_probs[-1:]),
        "score",
    )
    identity = replace(IDENTITY, vocabulary_size=1 << 16)
    found = decode_evidence([(stored([widest], identity), 0)], identity)
    assert_equal(found, widest.evidence)


def changed(**changes: Any) -> CachedResponse:
    """A record of two steps, altered."""
    sets = TopPSets(
        torch.tensor([5, 6, 7]), torch.tensor([-1.0, -1.0, -0.5]), torch.tensor([0, 2, 3])
    )
    evidence = Evidence(sets, torch.zeros(2), torch.tensor([-1.0, -3.0]))
    for name, value in changes.items():
        owner = sets if name in ("ids", "log_probs", "offsets") else evidence
        object.__setattr__(owner, name, torch.tensor(value))
    return CachedResponse(Row((3,), (6, 1), True), evidence, "score")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"log_probs": [-1.0, -0.5, -0.5]}, "sets in descending order"),
        (
            {"log_probs": [-1.0, -1.00001, -0.5]},
            r"rounded by .*rounding\.round_log_probs",
        ),
        ({"log_probs": [float("nan"), -1.0, -0.5]}, "rounded by"),
        ({"log_probs": [0.5, -1.0, -0.5]}, "rounded by"),
        (
            {"log_normaliser": [0.0, 0.001]},
            r"rounded by .*rounding\.round_normaliser",
        ),
        ({"log_normaliser": [0.0, float("nan")]}, "rounded by"),
        ({"action_log_prob": [-2.0, -3.0]}, "one log-probability for a response token"),
        ({"ids": [5, 64, 7]}, "tokens of a vocabulary of 64"),
        ({"ids": [5, -1, 7]}, "tokens of a vocabulary of 64"),
        ({"offsets": [0, 3, 3]}, "a set of at least one token for each of 2 steps"),
        ({"offsets": [0, 3]}, "a set of at least one token for each of 2 steps"),
    ],
)
def test_what_is_not_as_captured_is_refused(changes: dict[str, Any], text: str):
    stored([changed()], IDENTITY)
    with pytest.raises(CacheError, match=text):
        stored([changed(**changes)], IDENTITY)
