from __future__ import annotations

import math
from itertools import pairwise
from random import Random
from typing import Any

import padded
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tdistill.core import (
    TopPSets,
    check_top_p,
    log_set_mass,
    top_p,
    top_p_sets,
    truncate,
    truncate_by_gain,
)
from tdistill.errors import InvalidValueError, TdistillError

VOCABULARY = 50_257
MASSES = [1e-6, 1e-3, 0.1, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1 - 1e-6, 1.0]


def assert_equal(found: TopPSets, expected: TopPSets) -> None:
    assert torch.equal(found.offsets, expected.offsets)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.log_probs, expected.log_probs)


def wide_rows() -> Tensor:
    """One row of 50k for each shape of distribution that has broken such code."""
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(VOCABULARY, generator=generator)

    quantised = (2 * noise()).round()  # tie groups of thousands
    forbidden = 4 * noise()
    forbidden[torch.rand(VOCABULARY, generator=generator) < 0.999] = -math.inf
    sure = torch.full((VOCABULARY,), -math.inf)
    sure[31_415] = 0.0
    two_levels = torch.zeros(VOCABULARY)
    two_levels[[100, 50_000, 3, 40_000]] = 9.0
    flat = torch.zeros(VOCABULARY)
    rows = torch.stack([6 * noise(), noise(), quantised, forbidden, sure, two_levels, flat])
    return rows.log_softmax(-1)


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return wide_rows()


@pytest.mark.parametrize("p", MASSES)
def test_equals_the_plain_reference_on_50k_rows(rows: Tensor, p: float):
    sets = top_p_sets(rows, p)
    assert len(sets) == len(rows)
    for t, row in enumerate(rows):
        ids, log_probs = sets.row(t)
        assert ids.tolist() == padded.top_p_set(row, p), f"row {t}"
        assert torch.equal(log_probs, row[ids])


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_plain_reference_on_rows_of_every_kind(
    seed: int, monkeypatch: pytest.MonkeyPatch
):
    draw = Random(seed)
    generator = torch.Generator().manual_seed(seed)
    dtype = draw.choice([torch.float32, torch.float64, torch.bfloat16])
    rows = torch.randn(7, draw.choice([1, 2, 17, 64, 300, 1_000]), generator=generator)
    rows = rows * torch.tensor([0.0, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0])[:, None]
    if draw.random() < 0.5:
        rows = rows.round()  # ties, at the boundary too
    if draw.random() < 0.5:
        rows[:, 1:][torch.rand(rows[:, 1:].shape, generator=generator) < 0.7] = -math.inf
    rows = rows.to(torch.float64 if dtype == torch.float64 else torch.float32).log_softmax(-1)
    rows = rows.to(dtype) + draw.choice([0.0, -0.3, 1e-4])  # mass below p; rounding above 0
    monkeypatch.setattr(top_p, "_CHUNK", draw.choice([1, 2_000, 1 << 21]))
    reached = float(rows[3].max().float().exp().clamp(max=1))  # exactly, in float32
    for p in (1e-9, draw.random(), 0.9, 1 - 1e-9, 1.0, reached):
        cap = draw.choice([None, 1, 5, 20, 5_000])
        sets = top_p_sets(rows, p, max_size=cap)
        exact = rows.float() if dtype == torch.bfloat16 else rows
        for t, row in enumerate(exact):
            assert sets.row(t)[0].tolist() == padded.top_p_set(row, p, cap), f"row {t}"
            assert torch.equal(sets.row(t)[1], row[sets.row(t)[0]])


def test_both_zeros_are_one_value():
    log_probs = torch.tensor([[-50.0, 0.0, -0.0, 0.0, -0.0]])
    assert top_p_sets(log_probs, 1.0).ids.tolist() == [1, 2, 3, 4, 0]


class Sorted(TorchDispatchMode):
    """Counts the numbers that are sorted."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.sort, torch.ops.aten.topk):
            self.count += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("p", "cap"), [(0.9, None), (0.99, None), (0.9, 50), (1.0, 50)])
def test_little_more_than_the_members_is_sorted(p: float, cap: int | None):
    rows = 4 * torch.randn(16, VOCABULARY, generator=torch.Generator().manual_seed(3))
    with Sorted() as seen:
        sets = top_p_sets(rows.log_softmax(-1), p, max_size=cap)
    assert sets.ids.numel() <= seen.count < 1.3 * sets.ids.numel() + 16 * 20
    assert seen.count < rows.numel() / 10


@pytest.mark.parametrize("p", [1e-6, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("cap", [1, 63, 64, 65, 700])
def test_a_cap_keeps_the_most_probable(rows: Tensor, p: float, cap: int):
    whole, capped = top_p_sets(rows, p), top_p_sets(rows, p, max_size=cap)
    assert torch.equal(capped.sizes, whole.sizes.clamp(max=cap))
    for t in range(len(rows)):
        assert torch.equal(capped.row(t)[0], whole.row(t)[0][:cap])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(rows: Tensor, dtype: torch.dtype):
    half = rows.to(dtype)
    sets = top_p_sets(half, 0.99)
    assert sets.log_probs.dtype == torch.float32
    assert_equal(sets, top_p_sets(half.float(), 0.99))
    for t in (0, 3, 5):
        assert sets.row(t)[0].tolist() == padded.top_p_set(half[t].float(), 0.99)


@pytest.mark.parametrize("captured", [0.99, 0.999, 1.0])
def test_truncation_gives_the_smaller_set_exactly(rows: Tensor, captured: float):
    sets = top_p_sets(rows, captured)
    for p in MASSES:
        if p <= captured:
            assert_equal(truncate(sets, p), top_p_sets(rows, p))


@pytest.mark.parametrize("stride", [250, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_truncation_is_exact_at_masses_that_rows_reach(dtype: torch.dtype, stride: int):
    generator = torch.Generator().manual_seed(1)
    log_probs = 3 * torch.randn(2_500, 30, generator=generator, dtype=dtype)
    log_probs = log_probs.log_softmax(-1)
    captured = top_p_sets(log_probs, 1.0)
    ordered = log_probs.sort(descending=True).values.exp().double().cumsum(1).to(dtype)
    for p in ordered[::stride, :5].flatten().tolist():
        assert_equal(truncate(captured, p), top_p_sets(log_probs, p))


def test_equal_rows_have_equal_sets_wherever_they_stand():
    row = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    captured = top_p_sets(row.repeat(500, 1), 1.0)
    for p in (0.4, 0.7, 0.9, 0.1 + 0.2 + 0.4):
        for sets in (truncate(captured, p), top_p_sets(row.repeat(500, 1), p)):
            assert sets.sizes.unique().numel() == 1


def test_truncation_of_a_capped_set_keeps_what_there_is():
    log_probs = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.01, 0.01]]).log()
    capped = top_p_sets(log_probs, 0.99, max_size=2)
    assert truncate(capped, 0.9).sizes.tolist() == [2, 1]
    assert truncate(capped, 1.0) is capped


def test_hand_computed_sets():
    log_probs = torch.tensor([[0.125, 0.5, 0.125, 0.25], [0.25, 0.25, 0.25, 0.25]]).log()
    expected = {
        1e-6: [[1], [0]],
        0.5: [[1], [0, 1]],
        0.51: [[1, 3], [0, 1, 2]],
        0.75: [[1, 3], [0, 1, 2]],
        0.76: [[1, 3, 0], [0, 1, 2, 3]],
        0.875: [[1, 3, 0], [0, 1, 2, 3]],
        1.0: [[1, 3, 0, 2], [0, 1, 2, 3]],
    }
    for p, members in expected.items():
        sets = top_p_sets(log_probs, p)
        assert [sets.row(t)[0].tolist() for t in range(2)] == members, p


def test_ties_at_the_boundary_go_to_the_lower_ids():
    log_probs = torch.full((1, 1_000), 1e-3).log()
    assert top_p_sets(log_probs, 0.0605).ids.tolist() == list(range(61))
    assert top_p_sets(log_probs, 0.0645).ids.tolist() == list(range(65))
    assert top_p_sets(log_probs, 0.0605, max_size=64).ids.tolist() == list(range(61))
    assert top_p_sets(log_probs, 0.9, max_size=64).ids.tolist() == list(range(64))


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 64, 65, 512, 513])
def test_vocabularies_of_every_size(vocabulary: int):
    generator = torch.Generator().manual_seed(vocabulary)
    log_probs = torch.randn(3, vocabulary, generator=generator).log_softmax(-1)
    for p in (0.3, 0.9, 1.0):
        sets = top_p_sets(log_probs, p)
        for t in range(3):
            assert sets.row(t)[0].tolist() == padded.top_p_set(log_probs[t], p)


def test_impossible_tokens_are_never_members():
    log_probs = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]).log()
    for p in (0.9, 1.0):
        sets = top_p_sets(log_probs, p)
        assert [sets.row(t)[0].tolist() for t in range(2)] == [[0, 2], [3]]


def test_rows_do_not_depend_on_the_batch(rows: Tensor):
    order = torch.tensor([4, 2, 0, 6, 5, 1, 3])
    shuffled, together = top_p_sets(rows[order], 0.9), top_p_sets(rows, 0.9)
    for place, t in enumerate(order.tolist()):
        alone = top_p_sets(rows[t : t + 1], 0.9)
        for sets, at in ((shuffled, place), (alone, 0)):
            assert torch.equal(sets.row(at)[0], together.row(t)[0])
            assert torch.equal(sets.row(at)[1], together.row(t)[1])


def test_no_steps():
    sets = top_p_sets(torch.zeros(0, 5), 0.9)
    assert (len(sets), sets.ids.numel(), sets.offsets.tolist()) == (0, 0, [0])
    assert len(truncate(sets, 0.5)) == 0


def test_gradient_reaches_the_members_and_nothing_else():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: top_p_sets(z.log_softmax(-1), 0.8).log_probs, logits)
    log_probs = logits.log_softmax(-1)
    (grad,) = torch.autograd.grad(top_p_sets(log_probs, 0.8).log_probs.sum(), log_probs)
    assert grad.tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_the_parts_of_a_set():
    sets = top_p_sets(torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.1, 0.8]]).log(), 0.85)
    assert sets.sizes.tolist() == [2, 2]
    assert sets.step.tolist() == [0, 0, 1, 1]
    assert sets.row(-1)[0].tolist() == [2, 0] == sets.row(1)[0].tolist()
    assert_equal(sets.to("cpu"), sets)
    for t in (2, -3):
        with pytest.raises(IndexError, match=rf"expected a step in \[0, 2\), found {t}"):
            sets.row(t)


@pytest.mark.parametrize("p", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_mass_out_of_range_is_refused(p: float):
    log_probs = torch.zeros(1, 1)
    sets = top_p_sets(log_probs, 1.0)
    for call in (
        lambda: top_p_sets(log_probs, p),
        lambda: truncate(sets, p),
        lambda: check_top_p(p),
    ):
        with pytest.raises(InvalidValueError, match=rf"expected a mass in \(0, 1\], found {p}"):
            call()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (math.nan, "step 1 has NaN"),
        (0.5, r"step 1 has a log-probability above 0 \(pass log_softmax"),
        (-math.inf, "step 1 has no token of non-zero probability"),
    ],
)
def test_rows_that_are_no_distribution_are_refused(bad: float, message: str):
    log_probs = torch.zeros(2, 200).log_softmax(-1)
    log_probs[1, 150 if bad != -math.inf else slice(None)] = bad
    with pytest.raises(TdistillError, match=message):
        top_p_sets(log_probs, 0.9)


def test_a_cap_below_one_and_an_empty_vocabulary_are_refused():
    with pytest.raises(ValueError, match="max_size: expected at least 1 or None, found 0"):
        top_p_sets(torch.zeros(1, 1), 0.9, max_size=0)
    with pytest.raises(ValueError, match=r"expected shape \[T, V\] with V > 0, found \[3, 0\]"):
        top_p_sets(torch.zeros(3, 0), 0.9)


GAINS = [0.69, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4]


def loss(sets: TopPSets) -> float:
    """Mean of -log m, nats."""
    return float(-log_set_mass(sets.log_probs, sets.offsets).double().mean())


def size(sets: TopPSets) -> float:
    return float(sets.sizes.double().mean())


@pytest.mark.parametrize("gain", GAINS)
def test_a_set_ends_before_the_first_member_of_too_little_gain(gain: float):
    generator = torch.Generator().manual_seed(7)
    spread = 4 * torch.rand(60, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, 40, generator=generator, dtype=torch.float64)
    captured = top_p_sets((spread * noise).log_softmax(-1), 0.97)
    found = truncate_by_gain(captured, gain)
    for t in range(60):
        ids, log_probs = captured.row(t)
        mass = log_probs.exp().cumsum(0).tolist()
        gains = [math.log(b / a) for a, b in pairwise(mass)]
        assert gains == sorted(gains, reverse=True)  # -log m is convex in the number of members
        kept = 1 + sum(g > gain for g in gains)
        assert found.row(t)[0].tolist() == ids[:kept].tolist()


def test_no_gain_keeps_everything_and_a_large_one_the_best():
    rows = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    captured = top_p_sets(rows, 0.9)
    assert_equal(truncate_by_gain(captured, 0.0), captured)
    assert truncate_by_gain(captured, 0.7).sizes.tolist() == [1] * 20  # at most log 2 = 0.693
    assert len(truncate_by_gain(top_p_sets(torch.zeros(0, 5), 0.9), 0.1)) == 0


@pytest.mark.parametrize("seed", range(5))
def test_at_an_equal_loss_no_p_has_smaller_sets(seed: int):
    """The Lagrangian solution: least in size + loss / gain over all prefixes, so over every p."""
    generator = torch.Generator().manual_seed(seed)
    spread = 3 * torch.rand(200, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, 50, generator=generator, dtype=torch.float64)
    captured = top_p_sets((spread * noise).log_softmax(-1), 0.99)
    gains = [0.7 * 0.97**k for k in range(300)]
    choices = [truncate_by_gain(captured, gain) for gain in gains]
    sizes, losses = [size(sets) for sets in choices], [loss(sets) for sets in choices]
    for p in (0.3, 0.5, 0.8, 0.9, 0.95):
        other = truncate(captured, p)
        its_size, its_loss = size(other), loss(other)
        for gain, mine, lost in zip(gains, sizes, losses, strict=True):
            assert mine + lost / gain <= its_size + its_loss / gain + 1e-9
        # The first that loses no more than p does, on a grid of gains, still has smaller sets.
        assert (
            next(mine for mine, lost in zip(sizes, losses, strict=True) if lost <= its_loss)
            < its_size
        )


@pytest.mark.parametrize("gain", [-0.1, math.nan])
def test_a_negative_gain_is_refused(gain: float):
    with pytest.raises(InvalidValueError, match="min_gain: expected at least 0 nats"):
        truncate_by_gain(top_p_sets(torch.zeros(1, 1), 1.0), gain)
