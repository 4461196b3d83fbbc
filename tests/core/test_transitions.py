from __future__ import annotations

import padded
import pytest
import torch
from torch import Tensor

from tdistill.core import (
    Transitions,
    discounted_occupancy,
    ended_at_cuts,
    first_steps,
    split_at,
    successor,
    transitions,
)

LENGTHS = torch.tensor([3, 1, 1, 4, 2])
ENDED = torch.tensor([True, True, False, False, True])


def test_hand_computed_values():
    found = transitions(LENGTHS, ENDED, discount=0.5)
    half, end = 0.5, 0.0
    assert found.discount.tolist() == [
        half,
        half,
        end,
        end,
        half,
        half,
        half,
        half,
        half,
        half,
        end,
    ]
    yes, no = True, False
    assert found.has_successor.tolist() == [yes, yes, no, no, no, yes, yes, yes, no, yes, no]
    assert found.can_bootstrap.tolist() == [yes, yes, yes, yes, no, yes, yes, yes, no, yes, yes]


def test_a_cut_response_is_told_from_a_finished_one():
    lengths = torch.tensor([2])
    finished = transitions(lengths, torch.tensor([True]), discount=0.9)
    cut = transitions(lengths, torch.tensor([False]), discount=0.9)
    assert finished.discount[-1] == 0.0
    assert finished.can_bootstrap[-1]
    assert cut.discount[-1] == pytest.approx(0.9)
    assert not cut.can_bootstrap[-1]
    assert not finished.has_successor[-1]
    assert not cut.has_successor[-1]


def flat_steps(token_rows: Tensor, prompt: int, lengths: Tensor) -> Tensor:
    """The response tokens of padded rows, end to end, by their lengths."""
    place = torch.arange(token_rows.shape[1]) - prompt
    return token_rows[(place >= 0) & (place < lengths[:, None])]


@pytest.mark.parametrize("extra", [0, 1, 6])
def test_an_end_token_with_the_id_of_padding_stays_a_step_with_discount_0(extra: int):
    end = 2  # also the padding id
    rows = torch.tensor(
        [[5, 7, 8, end, end, end], [5, 9, 9, 9, 9, 9], [5, end, end, end, end, end]]
    )
    rows = torch.cat([rows, torch.full((3, extra), end)], dim=1)
    lengths, ended = torch.tensor([3, 5, 1]), torch.tensor([True, False, True])
    steps = flat_steps(rows, 1, lengths)
    found = transitions(lengths, ended, discount=0.5)
    assert steps.tolist() == [7, 8, end, 9, 9, 9, 9, 9, end]
    assert found.discount.numel() == steps.numel()
    assert (found.discount == 0.0).tolist() == (steps == end).tolist()
    assert found.can_bootstrap[steps == end].all()


def test_equals_the_padded_form():
    values = torch.arange(11.0) + 1
    found = transitions(LENGTHS, ENDED, discount=0.9)
    assert torch.equal(successor(values, found.has_successor), padded.next_value(values, LENGTHS))
    assert torch.equal(found.discount, padded.discounts(LENGTHS, ENDED, 0.9))


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [1, 4, 0, 2, 3], [0], [3, 1]])
def test_responses_do_not_depend_on_their_neighbours(order: list[int]):
    def per_response(lengths: Tensor, ended: Tensor, values: Tensor) -> list[tuple[Tensor, ...]]:
        found: Transitions = transitions(lengths, ended, discount=0.9)
        following = successor(values, found.has_successor)
        parts = (found.discount, found.has_successor, found.can_bootstrap, following)
        return list(zip(*(part.split(lengths.tolist()) for part in parts), strict=True))

    values = torch.arange(11.0)
    together = per_response(LENGTHS, ENDED, values)
    mine = torch.cat([values.split(LENGTHS.tolist())[i] for i in order])
    shuffled = per_response(LENGTHS[order], ENDED[order], mine)
    for place, i in enumerate(order):
        for a, b in zip(shuffled[place], together[i], strict=True):
            assert torch.equal(a, b)


def test_no_responses():
    found = transitions(LENGTHS[:0], ENDED[:0], discount=0.9)
    assert found.discount.shape == found.has_successor.shape == found.can_bootstrap.shape == (0,)
    assert successor(torch.zeros(0), found.has_successor).shape == (0,)


def test_an_integer_discount_is_a_real_number():
    assert transitions(LENGTHS, ENDED, discount=1).discount.dtype == torch.float32


def test_a_value_that_is_not_followed_cannot_leak():
    values = torch.tensor([1.0, float("nan"), 3.0], requires_grad=True)
    following = successor(values, torch.tensor([False, True, False]))
    assert following.tolist() == [0.0, 3.0, 0.0]
    (grad,) = torch.autograd.grad(following.sum(), values)
    assert grad.tolist() == [0.0, 0.0, 1.0]


def test_gradcheck():
    values = torch.arange(11.0, dtype=torch.float64, requires_grad=True)
    has_successor = transitions(LENGTHS, ENDED, discount=0.9).has_successor
    assert torch.autograd.gradcheck(lambda v: successor(v, has_successor), values)


WHOLE = transitions(LENGTHS, ENDED, discount=0.9)
ROW = torch.arange(len(LENGTHS)).repeat_interleave(LENGTHS)


def test_first_steps_follow_the_ends_of_the_rows_before():
    found = first_steps(WHOLE.has_successor)
    assert found.nonzero().squeeze(1).tolist() == [0, 3, 4, 5, 9]
    assert first_steps(WHOLE.has_successor[:0]).tolist() == []


def test_a_removed_step_cuts_before_it_and_what_follows_begins_anew():
    removed = torch.zeros(11, dtype=torch.bool)
    removed[[1, 4, 7, 10]] = True  # inside a row, all of one, inside a longer one, an end
    found = split_at(WHOLE, removed)
    assert (~found.can_bootstrap).nonzero().squeeze(1).tolist() == [0, 1, 4, 6, 7, 8, 9, 10]
    assert (~found.has_successor).nonzero().squeeze(1).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert first_steps(found.has_successor)[[0, 1, 2, 8]].all()
    whole = split_at(WHOLE, torch.zeros_like(removed))
    for name, tensor in whole.named_tensors().items():
        assert tensor.equal(getattr(WHOLE, name))


def test_a_row_that_ends_at_its_cut_has_nothing_unknown():
    found = ended_at_cuts(WHOLE)
    assert found.can_bootstrap.all()
    assert found.has_successor.equal(WHOLE.has_successor)
    assert (found.discount == 0.0).equal(~WHOLE.has_successor)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1.0])
def test_the_occupancy_is_that_of_a_loop(gamma: float):
    found = discounted_occupancy(WHOLE.has_successor, discount=gamma)
    expected = []
    for length in LENGTHS.tolist():
        powers = [gamma**t for t in range(length)]
        expected += [length * power / sum(powers) for power in powers]
    torch.testing.assert_close(found, torch.tensor(expected))
    means = torch.stack([found[row == ROW].mean() for row in range(len(LENGTHS))])
    torch.testing.assert_close(means, torch.ones(len(LENGTHS)))
