"""Shards of format 3: evidence comes back exactly, whatever it looks like, and damage is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from older import make_older
from test_inspection import rewrite

from tdistill.core import TopPSets
from tdistill.errors import CacheError
from tdistill.evidence.evidence import Evidence, concatenate
from tdistill.evidence.rows import Row
from tdistill.evidence.tail import Tail
from tdistill.teacher.cache import Cache, CacheWriter, Record
from tdistill.teacher.inspection import verify_cache
from tdistill.teacher.manifest import CacheIdentity, read_manifest
from tdistill.teacher.packed import PackedShard, decode_rows, evidence_of
from tdistill.teacher.packing import packed_batch
from tdistill.teacher.rounding import level_table, round_log_probs, round_normaliser
from teaching import CAPTURE, IDENTITY, PROMPTS, assert_close, assert_equal, contents, record, roll


def any_record(seed: int, vocabulary: int, *, largest: int, tails: int = 0) -> Record:
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
    return Record(Row(prompt, tuple(actions), seed % 2 == 0), evidence, f"rollout:{seed}")


def stored(records: list[Record], identity: CacheIdentity) -> PackedShard:
    return PackedShard(packed_batch(records, identity), identity)


@pytest.mark.parametrize("tails", [0, 255])
@pytest.mark.parametrize("vocabulary", [2, 64, 65, 4096, 49_152, 65_536, 65_537, 1 << 18])
def test_evidence_comes_back_exactly(vocabulary: int, tails: int):
    identity = replace(IDENTITY, vocabulary_size=vocabulary, tail_samples=tails)
    largest = min(vocabulary, 3000) if vocabulary < 1 << 17 else 40
    records = [any_record(s, vocabulary, largest=largest, tails=tails) for s in range(6)]
    records.insert(2, records[1])  # the same prompt twice
    one, other = stored(records[:3], identity), stored(records[3:], identity)
    assert one.rows() == [(r.row, r.source) for r in records[:3]]
    places = [(one, 0), (one, 1), (one, 2), *((other, i) for i in range(4))]
    for order in (range(7), (6, 0, 3, 3), (4,)):
        found = evidence_of(decode_rows([places[i] for i in order], identity))
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
    widest = Record(
        Row((1,), (65_535,), False),
        Evidence(sets, torch.tensor([-8192.0]), log_probs[-1:]),
        "score",
    )
    identity = replace(IDENTITY, vocabulary_size=1 << 16)
    columns = decode_rows([(stored([widest], identity), 0)], identity)
    assert_equal(evidence_of(columns), widest.evidence)


def changed(**changes: Any) -> Record:
    """A record of two steps, altered."""
    sets = TopPSets(
        torch.tensor([5, 6, 7]), torch.tensor([-1.0, -1.0, -0.5]), torch.tensor([0, 2, 3])
    )
    evidence = Evidence(sets, torch.zeros(2), torch.tensor([-1.0, -3.0]))
    for name, value in changes.items():
        owner = sets if name in ("ids", "log_probs", "offsets") else evidence
        object.__setattr__(owner, name, torch.tensor(value))
    return Record(Row((3,), (6, 1), True), evidence, "score")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"log_probs": [-1.0, -0.5, -0.5]}, "sets in descending order"),
        (
            {"log_probs": [-1.0, -1.00001, -0.5]},
            "rounded by tdistill.teacher.rounding.round_log_probs",
        ),
        ({"log_probs": [float("nan"), -1.0, -0.5]}, "rounded by"),
        ({"log_probs": [0.5, -1.0, -0.5]}, "rounded by"),
        ({"log_normaliser": [0.0, 0.001]}, "rounded by tdistill.teacher.rounding.round_normaliser"),
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


@pytest.mark.parametrize("version", [1, 2])
def test_a_cache_of_an_older_version_is_read_and_continued(version: int, tmp_path: Path):
    straight = roll(tmp_path / "new")
    roll(tmp_path / "old")
    old = make_older(tmp_path / "old", version)
    assert old.manifest.version == version
    assert old.rows() == straight.rows()
    assert_close(old.evidence(old.rows()), straight.evidence(old.rows()))
    before = contents(tmp_path / "old")
    roll(tmp_path / "old")
    assert contents(tmp_path / "old") == before  # everything was there
    roll(tmp_path / "old", PROMPTS[:1])
    mixed = Cache(tmp_path / "old")
    assert read_manifest(tmp_path / "old").version == mixed.manifest.version == 3
    assert {n: d for n, d in contents(tmp_path / "old").items() if n in before} | {
        "manifest.json": before["manifest.json"]
    } == before
    roll(tmp_path / "new", PROMPTS[:1])
    rows = mixed.rows()
    turns = [row for pair in zip(rows, reversed(rows), strict=True) for row in pair]
    assert_close(mixed.evidence(turns), Cache(tmp_path / "new").evidence(turns))
    assert verify_cache(mixed) == []
    with pytest.raises(CacheError, match="tail_samples: expected 6, found 0"):
        roll(tmp_path / "old", capture=replace(CAPTURE, tail_samples=6))


def cut(values: list[Any]) -> None:
    values[0] = values[0][:-1]


def longer(values: list[Any]) -> None:
    values[0] += b"\0"


def other_prompt(values: list[Any]) -> None:
    values[0] = bytes([values[0][0] ^ 1]) + values[0][1:]


def one_more(values: list[Any]) -> None:
    values[0] += 1


def swap(values: list[Any]) -> None:
    values[0], values[1] = values[1], values[0]


@pytest.mark.parametrize(
    ("column", "change", "problem"),
    [
        ("evidence", cut, "a row that cannot be read"),
        ("evidence", longer, "a row that cannot be read"),
        ("evidence", swap, "a row"),
        ("steps", one_more, "a row that cannot be read"),
        ("prompt_tokens", one_more, "a row"),
        ("evidence", other_prompt, "a row whose key is not that of its tokens"),
        ("key", swap, "a row whose key is not that of its tokens"),
    ],
)
def test_damage_with_a_matching_checksum_is_found(
    column: str, change: Callable[[list[Any]], Any], problem: str, tmp_path: Path
):
    first = roll(tmp_path).manifest.shards[0].name
    rewrite(tmp_path, column, change)
    found = verify_cache(Cache(tmp_path))
    assert len(found) == 1
    assert found[0].startswith(f"{first}: {problem}")


@pytest.mark.parametrize(("count", "name"), [("rows", "row"), ("steps", "step"), ("members",) * 2])
def test_counts_that_differ_from_the_manifest_are_found(count: str, name: str, tmp_path: Path):
    manifest = roll(tmp_path).manifest
    shard = manifest.shards[0]
    wrong = replace(shard, **{count: getattr(shard, count) + 1})
    manifest.with_shard(wrong).write(tmp_path)
    found = verify_cache(Cache(tmp_path))
    assert found == [f"{shard.name}: {name.rstrip('s')} count differs from the manifest"]


def test_tokens_that_cannot_be_are_found(tmp_path: Path):
    twice = changed(ids=[5, 5, 7], action_log_prob=[-3.0, -3.0])
    with CacheWriter(tmp_path, IDENTITY) as writer:
        writer.write("a", [twice, record((3,), (63, 1), seed=1)])
        manifest = writer.manifest
    assert verify_cache(Cache(tmp_path)) == ["a.arrow: a token twice in one set"]
    replace(manifest, identity=replace(IDENTITY, vocabulary_size=63)).write(tmp_path)
    assert "a.arrow: a token id outside the vocabulary" in verify_cache(Cache(tmp_path))


@pytest.mark.parametrize(
    ("ids", "log_probs", "counts", "problem"),
    [
        ([1, 2, 3], [-5.0, -5.0, -5.0], [4, 3, 1], None),
        ([2, 2, 3], [-5.0, -5.0, -5.0], [3, 1, 4], "a tail token twice in one step"),
        ([1, 7, 3], [-5.0, -5.0, -5.0], [4, 3, 1], "a tail token that is in the set"),
        ([1, 2, 3], [-5.0, -0.125, -5.0], [4, 3, 1], "a tail token likelier than the set"),
        ([1, 2, 3], [-5.0, -5.0, -5.0], [3, 3, 1], "a step without 4 tail draws"),
    ],
)
def test_tails_that_cannot_be_are_found(
    ids: list[int], log_probs: list[float], counts: list[int], problem: str | None, tmp_path: Path
):
    plain = changed()
    numbers = torch.tensor(ids), torch.tensor(log_probs), torch.tensor(counts)
    tail = Tail(*numbers, torch.tensor([0, 1, 3]))
    if problem == "a tail token twice in one step":
        tail = replace(tail, offsets=torch.tensor([0, 2, 3]))
    with CacheWriter(tmp_path, replace(IDENTITY, tail_samples=4)) as writer:
        writer.write("a", [replace(plain, evidence=replace(plain.evidence, tail=tail))])
    expected = [] if problem is None else [f"a.arrow: {problem}"]
    assert verify_cache(Cache(tmp_path)) == expected
