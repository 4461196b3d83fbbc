"""A tolerated gap is met by the smallest sets that meet it; what cannot be met is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tdistill.core import truncate, truncate_by_gain
from tdistill.errors import CacheError, InvalidValueError
from tdistill.teacher.adaptive import GapRule, choose_top_p
from tdistill.teacher.cache import Cache, CacheWriter
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.contents import Contents, contents_of
from teaching import roll

GAMMA = 0.9


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    return roll(folder, n=6, capture=CaptureConfig(0.95, None))


@pytest.fixture(scope="module")
def contents(cache: Cache) -> Contents:
    return contents_of(cache)


def plain_bound(cache: Cache, *, p: float = 1.0, gain: float = 0.0) -> tuple[float, float]:
    """(3.3) averaged over states, and the mean size, one step at a time in plain Python."""
    total, states, members = 0.0, 0, 0
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
        for t in range(len(losses)):
            total += sum(GAMMA ** (k - t) * losses[k] for k in range(t + 1, len(losses)))
        states += len(losses)
    return total / states, members / states


@pytest.mark.parametrize("gap", [0.3, 0.6, 1.5])
def test_one_p_is_the_smallest_that_meets_the_gap(gap: float, cache: Cache):
    found = choose_top_p(cache, gap, discount=GAMMA)
    assert (found.rule, found.min_gain, found.tolerated_gap) == ("global", None, gap)
    assert found.set_top_p is not None
    bound, size = plain_bound(cache, p=found.set_top_p)
    assert found.bound == pytest.approx(bound, rel=1e-4)
    assert found.mean_size == pytest.approx(size)
    assert found.bound <= gap < plain_bound(cache, p=found.set_top_p - 1e-4)[0]


@pytest.mark.parametrize("gap", [0.3, 0.6, 1.5])
def test_one_gain_is_the_largest_that_meets_the_gap(gap: float, cache: Cache):
    found = choose_top_p(cache, gap, discount=GAMMA, rule="per-state")
    assert (found.rule, found.set_top_p) == ("per-state", None)
    assert found.min_gain is not None
    bound, size = plain_bound(cache, gain=found.min_gain)
    assert found.bound == pytest.approx(bound, rel=1e-4)
    assert found.mean_size == pytest.approx(size)
    assert found.bound <= gap < plain_bound(cache, gain=1.005 * found.min_gain)[0]


@pytest.mark.parametrize("p", [0.5, 0.7, 0.8, 0.9])
def test_each_state_by_itself_needs_smaller_sets_than_one_p(p: float, contents: Contents):
    """At the loss of each p on real sets: no larger in members, over all positions alike."""
    other = truncate(contents.sets, p)
    wanted = contents.losses(other).mean()
    gains = [0.7 * 0.98**k for k in range(500)]
    choices = (truncate_by_gain(contents.sets, gain) for gain in gains)
    mine = next(sets for sets in choices if contents.losses(sets).mean() <= wanted)
    assert len(mine.ids) < len(other.ids)


@pytest.mark.parametrize("rule", ["global", "per-state"])
def test_a_gap_that_nothing_captured_meets_is_refused(rule: GapRule, contents: Contents):
    sets = contents.sets  # whose rounded mass may reach p before the last member
    whole = truncate(sets, contents.captured_top_p) if rule == "global" else sets
    least = contents.bound(whole, discount=GAMMA)
    text = rf"tolerated_gap: expected at least {least:.3g} nats.* found 0\.01; tolerate more"
    with pytest.raises(InvalidValueError, match=text):
        choose_top_p(contents, 0.01, discount=GAMMA, rule=rule)
    just = choose_top_p(contents, 1.001 * least, discount=GAMMA, rule=rule)
    assert just.bound == pytest.approx(least, rel=2e-3)


@pytest.mark.parametrize("rule", ["global", "per-state"])
def test_a_generous_gap_leaves_one_member_a_state(rule: GapRule, contents: Contents):
    found = choose_top_p(contents, 1e6, discount=GAMMA, rule=rule)
    assert found.mean_size == 1.0
    assert found.text().startswith("a gap of 1e+06 nats at discount 0.9: " + rule)


def test_a_smaller_gap_takes_more(contents: Contents):
    for rule in ("global", "per-state"):
        found = [choose_top_p(contents, gap, discount=GAMMA, rule=rule) for gap in (2, 1, 0.5)]
        sizes = [choice.mean_size for choice in found]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]


def test_a_discount_of_one_counts_to_the_end_of_the_response(contents: Contents):
    found = choose_top_p(contents, 2.0, discount=1.0)
    assert found.mean_size > choose_top_p(contents, 2.0, discount=GAMMA).mean_size


@pytest.mark.parametrize(("gap", "discount"), [(0.0, 0.9), (-1.0, 0.9), (1.0, 0.0), (1.0, 1.1)])
def test_what_asks_for_nothing_is_refused(gap: float, discount: float, contents: Contents):
    with pytest.raises(InvalidValueError, match=r"above 0 nats and a discount in \(0, 1\]"):
        choose_top_p(contents, gap, discount=discount)


def test_estimated_bytes_are_those_of_a_smaller_capture(cache: Cache, tmp_path: Path):
    """The same responses captured at the smaller p take what was estimated, up to alignment."""
    estimate = contents_of(cache).bytes_per_step(truncate(contents_of(cache).sets, 0.6))
    smaller = roll(tmp_path, n=6, capture=CaptureConfig(0.6, None), sampling_top_p=0.8)
    files = sum(shard.bytes for shard in smaller.manifest.shards)
    assert smaller.manifest.steps == pytest.approx(cache.manifest.steps, rel=0.2)
    assert files / smaller.manifest.steps == pytest.approx(estimate, rel=0.1)


def test_contents_count_what_is_there(cache: Cache, contents: Contents, tmp_path: Path):
    assert len(contents.sets) == int(contents.lengths.sum()) == cache.manifest.steps
    assert contents.ended.tolist() == [row.ended for row in cache.rows()]
    assert contents.action.tolist() == [a for row in cache.rows() for a in row.response_ids]
    assert contents.bytes_per_step(contents.sets) == contents.bytes / len(contents.sets)
    assert int(contents.tail_sizes.sum()) == 0
    tails = roll(tmp_path / "tail", capture=CaptureConfig(0.6, None, 4))
    whole = tails.evidence(tails.rows()).tail
    assert whole is not None
    assert torch.equal(contents_of(tails).tail_sizes, whole.sizes)
    with CacheWriter(tmp_path / "empty", replace(cache.manifest.identity)):
        pass
    with pytest.raises(CacheError, match="found an empty one"):
        contents_of(Cache(tmp_path / "empty"))
