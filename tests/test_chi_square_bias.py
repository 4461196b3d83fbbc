"""How far chi-square's optimum is from the teacher, the figure in the objectives' cards."""

from __future__ import annotations

from statistics import mean
from typing import Any

import pytest

from tabular_batch import make_problem
from tabular_optima import residual_iq, semi_iq
from tdistill import core

TREES = [(3, 2, 0.5, 0.8), (3, 3, 0.9, 0.9), (4, 2, 0.99, 1.0), (3, 3, 0.99, 0.8), (4, 2, 0.9, 0.6)]


def bias(optimum: Any, alpha: float, trees: int = 5) -> float:
    """Mean absolute difference of probabilities on the sets, over drawn trees."""

    def phi(x: Any) -> Any:
        return core.chi_square_phi(x, alpha=alpha)

    found = []
    for seed in range(trees):
        vocabulary, depth, discount, set_top_p = TREES[seed % len(TREES)]
        problem = make_problem(vocabulary, depth, discount=discount, set_top_p=set_top_p, seed=seed)
        members = problem.allowed & problem.reached.any(1)[:, None]
        found.append(float((optimum(phi)(problem) - problem.teacher).abs()[members].mean()))
    return mean(found)


@pytest.mark.parametrize("optimum", [semi_iq, residual_iq])
def test_the_bias_is_about_six_hundredths_over_alpha(optimum: Any) -> None:
    assert 10.0 * bias(optimum, 10.0) == pytest.approx(0.06, abs=0.015)


def test_the_bias_falls_as_one_over_alpha() -> None:
    assert bias(semi_iq, 5.0, 10) / bias(semi_iq, 50.0, 10) == pytest.approx(10.0, rel=0.2)
