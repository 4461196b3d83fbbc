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
from tdistill.teacher.cache.all_steps import AllSteps, all_steps
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.config import CaptureConfig
from teaching import roll

GAMMA = 0.9


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    return roll(folder, n=6, capture=CaptureConfig(0.95, None))


@pytest.fixture(scope="module")
def steps(cache: Cache) -> AllSteps:
    return all_steps(cache)


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


@pytest.mark.parametrize("p", [0.5, 0.7, 0.8, 0.9])
def test_each_state_by_itself_needs_smaller_sets_than_one_p(p: float, steps: AllSteps):
    """At the loss of each p on real sets: no larger in members, over all positions alike."""
    other = truncate(steps.sets, p)
    wanted = steps.losses(other).mean()
    gains = [0.7 * 0.98**k for k in range(500)]
    choices = (truncate_by_gain(steps.sets, gain) for gain in gains)
    mine = next(sets for sets in choices if steps.losses(sets).mean() <= wanted)
    assert len(mine.ids) < len(other.ids)


@pytest.mark.parametrize("rule", ["global", "per-state"])
def test_a_gap_that_nothing_captured_meets_is_refused(rule: GapRule, steps: AllSteps):
    sets = steps.sets  # whose rounded mass may reach p before the last member
    whole = truncate(sets, steps.captured_top_p) if rule == "global" else sets
    least = steps.bound(whole, discount=GAMMA)
    text = rf"tolerated_gap: expected at least {least:.3g} nats.* found 0\.01; tolerate more"
    with pytest.raises(InvalidValueError, match=text):
        choose_top_p(steps, 0.01, discount=GAMMA, rule=rule)
    just = choose_top_p(steps, 1.001 * least, discount=GAMMA, rule=rule)
    assert just.bound == pytest.approx(least, rel=2e-3)


@pytest.mark.parametrize("rule", ["global", "per-state"])
def test_a_generous_gap_leaves_one_member_a_state(rule: GapRule, steps: AllSteps):
    found = choose_top_p(steps, 1e6, discount=GAMMA, rule=rule)
    assert found.mean_size == 1.0
    assert found.text().startswith("a gap of 1e+06 nats at discount 0.9: " + rule)


def test_a_smaller_gap_takes_more(steps: AllSteps):
    for rule in ("global", "per-state"):
        found = [choose_top_p(steps, gap, discount=GAMMA, rule=rule) for gap in (2, 1, 0.5)]
        sizes = [choice.mean_size for choice in found]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]


def test_a_discount_of_one_counts_to_the_end_of_the_response(steps: AllSteps):
    found = choose_top_p(steps, 12.0, discount=1.0)
    assert found.mean_size > choose_top_p(steps, 12.0, discount=GAMMA).mean_size


def test_without_a_discount_responses_that_never_end_lose_without_bound(steps: AllSteps):
    endless = replace(steps, ended=torch.zeros_like(steps.ended))
    assert choose_top_p(endless, 12.0, discount=0.9).bound <= 12.0
    with pytest.raises(InvalidValueError, match="expected at least inf nats"):
        choose_top_p(endless, 1e9, discount=1.0)


def test_cut_responses_make_the_bound_larger(steps: AllSteps):
    found = choose_top_p(steps, 2.0, discount=GAMMA)
    assert found.bound <= 2.0
    assert found.bound > found.bound_as_cached > 0.0
    all_ended = replace(steps, ended=torch.ones_like(steps.ended))
    again = choose_top_p(all_ended, 2.0, discount=GAMMA)
    assert again.bound == again.bound_as_cached
    assert again.mean_size < found.mean_size  # what a cut hides must be paid for


@pytest.mark.parametrize(("gap", "discount"), [(0.0, 0.9), (-1.0, 0.9), (1.0, 0.0), (1.0, 1.1)])
def test_what_asks_for_nothing_is_refused(gap: float, discount: float, steps: AllSteps):
    with pytest.raises(InvalidValueError, match=r"above 0 nats and a discount in \(0, 1\]"):
        choose_top_p(steps, gap, discount=discount)


def test_estimated_bytes_are_those_of_a_smaller_capture(cache: Cache, tmp_path: Path):
    """The same responses captured at the smaller p take what was estimated, up to alignment."""
    estimate = all_steps(cache).bytes_per_step(truncate(all_steps(cache).sets, 0.6))
    smaller = roll(tmp_path, n=6, capture=CaptureConfig(0.6, None), sampling_top_p=0.8)
    files = sum(shard.bytes for shard in smaller.manifest.shards)
    assert smaller.manifest.steps == pytest.approx(cache.manifest.steps, rel=0.2)
    assert files / smaller.manifest.steps == pytest.approx(estimate, rel=0.1)


def test_contents_count_what_is_there(cache: Cache, steps: AllSteps, tmp_path: Path):
    assert len(steps.sets) == int(steps.lengths.sum()) == cache.manifest.steps
    assert steps.ended.tolist() == [row.ended for row in cache.rows()]
    assert steps.action.tolist() == [a for row in cache.rows() for a in row.response_ids]
    assert steps.bytes_per_step(steps.sets) == steps.bytes / len(steps.sets)
    assert int(steps.tail_sizes.sum()) == 0
    tails = roll(tmp_path / "tail", capture=CaptureConfig(0.6, None, 4))
    whole = tails.evidence(tails.rows()).tail
    assert whole is not None
    assert torch.equal(all_steps(tails).tail_sizes, whole.sizes)
    with CacheWriter(tmp_path / "empty", replace(cache.manifest.identity)):
        pass
    with pytest.raises(CacheError, match="found an empty one"):
        all_steps(Cache(tmp_path / "empty"))
