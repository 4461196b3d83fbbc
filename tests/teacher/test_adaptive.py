"""A tolerated gap is met by the smallest sets that meet it; what cannot be met is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tdistill.core import log_set_mass, truncate, truncate_by_gain
from tdistill.errors import CacheError, InvalidValueError
from tdistill.teacher.adaptive import choose_top_p
from tdistill.teacher.cache import blocks as module
from tdistill.teacher.cache.blocks import blocks
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.gap_sums import GapRule, GapSums, members_of
from teaching import IDENTITY, record, roll

GAMMA = 0.9


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    return roll(folder, n=6, capture=CaptureConfig(0.95, None))


def plain_bound(cache: Cache, *, p: float = 1.0, gain: float = 0.0) -> tuple[float, float]:
    """(3.3) averaged over states, and the mean size, one step at a time in plain Python.

    Responses that were cut go on for a long time, ending at each step as often as others do.
    """
    responses: list[tuple[bool, list[float]]] = []
    members = 0
    for row in cache.rows():
        sets, losses = cache.evidence([row]).sets, []
        for t in range(len(row.response_ids)):
            mass, kept = 0.0, 0
            for probability in sets.row(t)[1].double().exp().tolist():
                if kept and (mass >= p or math.log((mass + probability) / mass) <= gain):
                    break
                mass, kept = mass + probability, kept + 1
            losses.append(max(0.0, -math.log(mass)))
            members += kept
        responses.append((row.ended, losses))
    assert 0 < sum(ended for ended, _ in responses) < len(responses)
    states = sum(len(losses) for _, losses in responses)
    mean = sum(sum(losses) for _, losses in responses) / states
    ending = sum(ended for ended, _ in responses) / states
    total = 0.0
    for ended, losses in responses:
        later = [] if ended else [mean * (1 - ending) ** k for k in range(500)]
        for t in range(len(losses)):
            total += sum(GAMMA**k * x for k, x in enumerate([*losses, *later][t + 1 :], 1))
    return total / states, members / states


@pytest.mark.parametrize("gap", [0.9, 1.5, 3.0])
def test_one_p_is_the_smallest_that_meets_the_gap(gap: float, cache: Cache):
    found = choose_top_p(cache, gap, discount=GAMMA)
    assert (found.rule, found.min_gain, found.tolerated_gap) == ("global", None, gap)
    assert found.set_top_p is not None
    bound, size = plain_bound(cache, p=found.set_top_p)
    assert found.bound == pytest.approx(bound, rel=1e-4)
    assert found.mean_size == pytest.approx(size)
    assert found.bound <= gap < plain_bound(cache, p=found.set_top_p - 1e-4)[0]


@pytest.mark.parametrize("gap", [0.9, 1.5, 3.0])
def test_one_gain_is_the_largest_that_meets_the_gap(gap: float, cache: Cache):
    found = choose_top_p(cache, gap, discount=GAMMA, rule="per-state")
    assert (found.rule, found.set_top_p) == ("per-state", None)
    assert found.min_gain is not None
    bound, size = plain_bound(cache, gain=found.min_gain)
    assert found.bound == pytest.approx(bound, rel=1e-4)
    assert found.mean_size == pytest.approx(size)
    assert found.bound <= gap < plain_bound(cache, gain=1.005 * found.min_gain)[0]


def sums_of(cache: Cache, rule: GapRule, discount: float = GAMMA) -> GapSums:
    sums = GapSums(rule, cache.manifest.identity.captured_top_p, discount=discount)
    for block in blocks(cache):
        sums.add(block, members_of(block))
    return sums


@pytest.mark.parametrize("p", [0.5, 0.7, 0.8, 0.9])
def test_each_state_by_itself_needs_smaller_sets_than_one_p(p: float, cache: Cache):
    """At the loss of each p on real sets: no larger in members, over all positions alike."""
    other, mine = sums_of(cache, "global"), sums_of(cache, "per-state")
    k = other.values.index(p)
    same = next(n for n in range(8001) if mine.mean_loss(n) <= other.mean_loss(k))
    assert mine.mean_size(same) < other.mean_size(k)


@pytest.mark.parametrize("captured", [0.95, 1.0])
def test_sums_of_all_values_are_those_of_sets_that_are_cut(captured: float, tmp_path: Path):
    """One pass over a cache against `truncate` and `truncate_by_gain`, value by value."""
    cache = roll(tmp_path, capture=CaptureConfig(captured, 17))
    sets = cache.evidence(cache.rows()).sets
    cuts: dict[GapRule, Any] = {"global": truncate, "per-state": truncate_by_gain}
    for rule, cut in cuts.items():
        sums = sums_of(cache, rule)
        assert sums.values[-1] == (captured if rule == "global" else 0.0)
        for k in [0, *range(5, len(sums.values), 997), len(sums.values) - 1]:
            kept = cut(sets, sums.values[k])
            losses = -log_set_mass(kept.log_probs, kept.offsets).clamp(max=0.0)
            assert sums.mean_size(k) == len(kept.ids) / len(kept)
            assert sums.mean_loss(k) == pytest.approx(float(losses.mean()), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("rule", ["global", "per-state"])
def test_a_gap_that_nothing_captured_meets_is_refused(rule: GapRule, cache: Cache):
    sums = sums_of(cache, rule)
    least = sums.bound(len(sums.values) - 1)
    text = rf"tolerated_gap: expected at least {least:.3g} nats.* found 0\.01; tolerate more"
    with pytest.raises(InvalidValueError, match=text):
        choose_top_p(cache, 0.01, discount=GAMMA, rule=rule)
    just = choose_top_p(cache, 1.001 * least, discount=GAMMA, rule=rule)
    assert just.bound == pytest.approx(least, rel=2e-3)


@pytest.mark.parametrize("rule", ["global", "per-state"])
def test_a_generous_gap_leaves_one_member_a_state(rule: GapRule, cache: Cache):
    found = choose_top_p(cache, 1e6, discount=GAMMA, rule=rule)
    assert found.mean_size == 1.0
    assert found.text().startswith("a gap of 1e+06 nats at discount 0.9: " + rule)


def test_a_smaller_gap_takes_more(cache: Cache):
    for rule in ("global", "per-state"):
        found = [choose_top_p(cache, gap, discount=GAMMA, rule=rule) for gap in (2, 1, 0.5)]
        sizes = [choice.mean_size for choice in found]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]


def test_a_discount_of_one_counts_to_the_end_of_the_response(cache: Cache):
    found = choose_top_p(cache, 12.0, discount=1.0)
    assert found.mean_size > choose_top_p(cache, 12.0, discount=GAMMA).mean_size


def test_without_a_discount_responses_that_never_end_lose_without_bound(tmp_path: Path):
    endless = with_ends(tmp_path, ended=False)
    assert choose_top_p(endless, 4.0, discount=0.9).bound <= 4.0
    with pytest.raises(InvalidValueError, match="expected at least inf nats"):
        choose_top_p(endless, 1e9, discount=1.0)


def with_ends(folder: Path, *, ended: bool) -> Cache:
    """The same evidence, of responses that all have ended, or all were cut."""
    made = [record((i,), tuple(range(2, 9)), seed=i) for i in range(8)]
    with CacheWriter(folder / str(ended), IDENTITY) as writer:
        rows = [replace(one, row=replace(one.row, ended=ended)) for one in made]
        writer.write("a", rows)
    return Cache(folder / str(ended))


def test_cut_responses_make_the_bound_larger(tmp_path: Path):
    cut, all_ended = (with_ends(tmp_path, ended=ended) for ended in (False, True))
    found = choose_top_p(cut, 4.0, discount=GAMMA)
    assert found.bound <= 4.0
    assert found.bound > found.bound_as_cached > 0.0
    again = choose_top_p(all_ended, 4.0, discount=GAMMA)
    assert again.bound == again.bound_as_cached
    assert again.mean_size < found.mean_size  # what a cut hides must be paid for


@pytest.mark.parametrize(("gap", "discount"), [(0.0, 0.9), (-1.0, 0.9), (1.0, 0.0), (1.0, 1.1)])
def test_what_asks_for_nothing_is_refused(gap: float, discount: float, cache: Cache):
    with pytest.raises(InvalidValueError, match=r"above 0 nats and a discount in \(0, 1\]"):
        choose_top_p(cache, gap, discount=discount)


def test_estimated_bytes_are_those_of_a_smaller_capture(cache: Cache, tmp_path: Path):
    """The same responses captured at the smaller p take what was estimated, up to alignment."""
    sums = sums_of(cache, "global")
    estimate = sums.bytes_per_step(sums.values.index(0.6), cache.manifest.bytes)
    smaller = roll(tmp_path, n=6, capture=CaptureConfig(0.6, None), sampling_top_p=0.8)
    files = sum(shard.bytes for shard in smaller.manifest.shards)
    assert smaller.manifest.steps == pytest.approx(cache.manifest.steps, rel=0.2)
    assert files / smaller.manifest.steps == pytest.approx(estimate, rel=0.1)
    last = sums.bytes_per_step(len(sums.values) - 1, cache.manifest.bytes)
    assert last == pytest.approx(cache.manifest.bytes / cache.manifest.steps, rel=0.02)


def test_blocks_are_the_whole_cache_in_order(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_STEPS", 10)
    found, rows = list(blocks(cache)), cache.rows()
    assert len(found) > len(cache.manifest.shards)
    assert [len(block.sets) for block in found] == [int(block.lengths.sum()) for block in found]
    assert torch.cat([block.ended for block in found]).tolist() == [row.ended for row in rows]
    actions = torch.cat([block.action for block in found]).tolist()
    assert actions == [a for row in rows for a in row.response_ids]
    whole = cache.evidence(rows).sets
    assert torch.equal(torch.cat([block.sets.ids for block in found]), whole.ids)
    assert sum(int(block.tail_sizes.sum()) for block in found) == 0
    # 6 bits of token and 4 of level; 8 and 16 more where the member before is far above.
    bits = torch.cat([block.member_bits for block in found])
    assert set(bits.tolist()) <= {10, 18, 34}
    files = 8 * cache.manifest.bytes
    assert 0 < int(bits.sum()) < files
    tails = roll(tmp_path / "tail", capture=CaptureConfig(0.6, None, 4))
    tail = tails.evidence(tails.rows()).tail
    assert tail is not None
    assert torch.equal(torch.cat([block.tail_sizes for block in blocks(tails)]), tail.sizes)
    with CacheWriter(tmp_path / "empty", cache.manifest.identity):
        pass
    with pytest.raises(CacheError, match="found an empty one"):
        list(blocks(Cache(tmp_path / "empty")))
