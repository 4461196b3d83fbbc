"""The rows of every update: whole epochs, in an order that no number of processes changes."""

from __future__ import annotations

from itertools import chain, islice, pairwise
from typing import Any

import pytest
import torch

from tdistill.models.layout import Pair
from tdistill.training.sampling import MicroBatches, PromptGroups, prompt_order, uniform_order

ROWS = [Pair((i % 5,), (i, 7)) for i in range(23)]
SIZES: dict[str, Any] = {"updates": 9, "batch_size": 12}


def test_every_row_once_an_epoch_and_the_responses_of_a_prompt_together():
    order = prompt_order(ROWS, seed=3)
    epochs = [order(epoch).tolist() for epoch in range(3)]
    for rows in epochs:
        assert sorted(rows) == list(range(23))
        prompts = [ROWS[i].prompt_ids for i in rows]
        assert sum(a != b for a, b in pairwise(prompts)) == 4
    assert epochs[0] != epochs[1] != epochs[2]


def test_every_prompt_is_as_likely_to_come_first():
    counts = [0] * 5
    for seed in range(400):
        (number,) = ROWS[prompt_order(ROWS, seed)(0)[0]].prompt_ids
        counts[number] += 1
    assert all(50 < count < 110 for count in counts)


def test_updates_are_full_and_go_on_from_one_epoch_to_the_next():
    order = uniform_order(23, seed=3)
    updates = list(MicroBatches(order, **SIZES))
    assert [len(update) for update in updates] == [12] * 9
    epochs = list(chain(*map(order, range(5))))
    assert list(chain(*updates)) == epochs[: 9 * 12]
    assert uniform_order(23, seed=4)(0).tolist() != order(0).tolist()


@pytest.mark.parametrize(("accumulation", "parts"), [(1, 4), (3, 2), (6, 1), (2, 3)])
def test_micro_batches_and_their_parts_are_the_update_cut(accumulation: int, parts: int):
    order = uniform_order(23, seed=3)
    whole = list(MicroBatches(order, **SIZES))
    shares = [
        MicroBatches(order, **SIZES, accumulation=accumulation, part=part, parts=parts)
        for part in range(parts)
    ]
    assert {len(share) for share in shares} == {9 * accumulation}
    micro = iter([list(chain(*pieces)) for pieces in zip(*shares, strict=True)])
    assert [list(chain(*islice(micro, accumulation))) for _ in whole] == whole


def test_fewer_rows_than_an_update_has_are_taken_again():
    (update,) = MicroBatches(uniform_order(3, seed=0), updates=1, batch_size=7)
    assert sorted(update[:3]) == sorted(update[3:6]) == [0, 1, 2]


def test_the_orders_are_those_of_plain_lists():
    """The seeded permutation of all rows, or of the prompts in the order in which they come."""
    numbers = torch.randperm(23, generator=torch.Generator().manual_seed(3 + 2)).tolist()
    assert uniform_order(23, seed=3)(2).tolist() == numbers
    mixed = [Pair((k * k % 7,), (k,)) for k in range(40)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(mixed):
        groups.setdefault(row.prompt_ids, []).append(number)
    parts, found = list(groups.values()), PromptGroups.of(mixed)
    assert [found[k].tolist() for k in range(len(found))] == parts
    assert [parts[k].index(i) >= 0 for i, k in enumerate(found.numbers())] == [True] * 40
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(3)).tolist()
    assert prompt_order(mixed, seed=3)(0).tolist() == [i for k in order for i in parts[k]]
    assert prompt_order(mixed, seed=3)(0).dtype == uniform_order(9, seed=0)(0).dtype == "uint32"
