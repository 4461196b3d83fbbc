"""Whole prompts in a random order, every row once an epoch."""

from __future__ import annotations

from itertools import pairwise

from tdistill.models.layout import Pair
from tdistill.training.sampling import PromptSampler

ROWS = [Pair((i % 5,), (i, 7)) for i in range(23)]


def test_every_row_once_an_epoch_and_the_responses_of_a_prompt_together():
    sampler = PromptSampler(ROWS, seed=3)
    assert len(sampler) == 23
    epochs = [list(sampler) for _ in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(23))
        prompts = [ROWS[i].prompt_ids for i in order]
        assert sum(a != b for a, b in pairwise(prompts)) == 4
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    first = PromptSampler(ROWS, seed=3)
    epochs = [list(first) for _ in range(3)]
    again = PromptSampler(ROWS, seed=3)
    again.set_epoch(2)
    assert list(again) == epochs[2]
    assert list(PromptSampler(ROWS, seed=4)) != epochs[0]


def test_every_prompt_is_as_likely_to_come_first():
    counts = [0] * 5
    for seed in range(400):
        (number,) = ROWS[next(iter(PromptSampler(ROWS, seed=seed)))].prompt_ids
        counts[number] += 1
    assert all(50 < count < 110 for count in counts)
