"""Rows of unequal length, and tensors that move together."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tdistill.core import TensorGroup, TopPSets

ROWS = [[4, 7], [], [5, 9, 2], [1]]


def ragged(rows: list[list[int]]) -> TopPSets:
    """Sets of these tokens; a log-probability is minus its token."""
    ids = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    sizes = [0, *(len(row) for row in rows)]
    return TopPSets(ids, -ids.float(), torch.tensor(sizes).cumsum(0))


def as_lists(sets: TopPSets) -> list[list[int]]:
    rows = [sets.row(t) for t in range(len(sets))]
    assert all(torch.equal(log_probs, -ids.float()) for ids, log_probs in rows)
    return [ids.tolist() for ids, _ in rows]


def test_sizes_and_the_step_of_every_member():
    sets = ragged(ROWS)
    assert len(sets) == 4
    assert sets.sizes.tolist() == [2, 0, 3, 1]
    assert sets.step.tolist() == [0, 0, 2, 2, 2, 3]
    assert sets.step is sets.step  # counted once


@pytest.mark.parametrize("chosen", [[2, 0], [3, 1, 1, 2, 2], []])
def test_rows_are_taken_in_the_order_chosen(chosen: list[int]):
    taken = ragged(ROWS).take(torch.tensor(chosen, dtype=torch.long))
    assert as_lists(taken) == [ROWS[t] for t in chosen]


def test_marked_members_are_kept():
    marked = torch.tensor([True, False, False, True, True, False])
    assert as_lists(ragged(ROWS).keep(marked)) == [[4], [], [9, 2], []]


def test_rows_are_laid_end_to_end():
    parts = [ragged(ROWS[:1]), ragged(ROWS[1:2]), ragged(ROWS[2:])]
    assert as_lists(TopPSets.concatenate(parts)) == ROWS


@dataclass(frozen=True, eq=False)
class Pair(TensorGroup):
    sets: TopPSets
    weight: Tensor
    more: Tensor | None = None


def test_groups_move_as_one():
    pair = Pair(ragged(ROWS), torch.ones(4))
    assert list(pair.named_tensors()) == ["sets.ids", "sets.log_probs", "sets.offsets", "weight"]
    away = pair.to("meta")
    assert away.more is None
    assert all(tensor.is_meta for tensor in away.named_tensors().values())
    doubled = pair.map(lambda tensor: 2 * tensor)
    assert doubled.weight.tolist() == [2.0] * 4
    assert doubled.sets.ids.tolist() == (2 * pair.sets.ids).tolist()
