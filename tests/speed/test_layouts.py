from __future__ import annotations

import pytest
import torch
from benchmarks.speed.cache_bytes import Problem, _gain
from benchmarks.speed.distillkit import BUDGET, RECOMMENDED, bytes_per_step, setting_of
from benchmarks.speed.layouts import megatron_bytes

from tdistill.core import top_p_sets, truncate_by_gain


@pytest.mark.parametrize(
    ("published", "vocabulary", "expected"),
    [
        (RECOMMENDED, 151_936, 128 * 18 // 8 + 16 * 2 + 6 * 4),
        (RECOMMENDED, 49_152, 128 * 16 // 8 + 16 * 2 + 6 * 4),
        (BUDGET, 151_936, 113 + 1 * 2 + 3 * 4),  # 50 ids of 18 bits are 112.5 bytes
        (BUDGET, 1 << 16, 50 * 2 + 1 * 2 + 3 * 4),
    ],
)
def test_distillkit_bytes(published: dict, vocabulary: int, expected: int):
    assert bytes_per_step(published, vocabulary) == expected


def test_a_published_setting_names_its_vocabulary():
    assert setting_of(BUDGET, 7)["d"] == 7
    assert "d" not in BUDGET


def test_megatron_gives_every_step_of_a_micro_batch_the_largest_sets_room():
    assert megatron_bytes([[1, 2, 3]], most=256) == 5 * 3 * 3
    assert megatron_bytes([[1, 2, 3], [1]], most=256) == 5 * (3 * 3 + 1)
    assert megatron_bytes([[1, 1000]], most=256) == 5 * 2 * 256
    assert megatron_bytes([[]], most=256) == 0


def test_equal_mass_takes_the_largest_gain_that_holds_enough():
    probs = torch.tensor([[0.5, 0.3, 0.1, 0.05], [0.9, 0.05, 0.03, 0.01], [0.25] * 4])
    problem = Problem(setting=None, teacher=None, rows=[])
    problem.__dict__["cumulative"] = probs.double().cumsum(-1)
    for target in (0.6, 0.7, 0.8, 0.9):
        gain = _gain(problem, target)
        assert problem.held(problem.sizes_by_gain(gain)) >= target
        assert problem.held(problem.sizes_by_gain(gain * 1.001)) < target
    by_core = truncate_by_gain(top_p_sets(probs.log(), 1.0), gain)
    assert by_core.sizes.tolist() == problem.sizes_by_gain(gain).tolist()
