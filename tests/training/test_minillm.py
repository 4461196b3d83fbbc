"""MiniLLM's gradient is that of the reverse KL between whole responses, enumerated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tabular_batch import ExactBatch, Problem, exact_batch, make_problem, responses
from tdistill.errors import InvalidValueError
from tdistill.evidence.rows import ROW_SOURCES
from tdistill.models.score_forms import DenseStepScores
from tdistill.training.objectives import MiniLLM
from tdistill.training.objectives.base import Views

PLAIN = MiniLLM(length_norm=False, clip_ratio=None, teacher_mix=0.0)


def own_samples(problem: Problem, table: Tensor, sampler: Tensor) -> ExactBatch:
    """Every response of a sampler with its probability, as rows of the student."""
    drawn = replace(problem, other=sampler)
    whole = exact_batch(drawn, student_share=0.5)
    policy = sampler.log()[whole.state, whole.batch.action]
    own = whole.batch.source[whole.batch.row] == ROW_SOURCES.index("student")
    batch = replace(whole.batch, behaviour_log_prob=policy)
    return ExactBatch(batch, whole.state, torch.where(own, 2.0 * whole.weight, 0.0))


def estimate(problem: Problem, objective: MiniLLM, table: Tensor, sampler: Tensor) -> Tensor:
    """The expected gradient of the loss over the sampler's responses [S, V]."""
    exact = own_samples(problem, table, sampler)
    teacher = DenseStepScores(problem.scores[exact.state])
    loss = objective.loss(Views(exact.view(table), teacher), exact.batch).loss
    return torch.autograd.grad((exact.weight * loss).sum(), table)[0]


def sequence_kl(problem: Problem, table: Tensor) -> Tensor:
    """``sum_y pi(y) log pi(y) / pi*(y)`` over all responses, with gradients."""
    student, teacher = table.log_softmax(1), problem.scores.log_softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for states, tokens, _ in responses(problem.mdp, torch.ones_like(table)):
        place = torch.tensor(states), torch.tensor(tokens)
        own, theirs = student[place].sum(), teacher[place].sum()
        total = total + own.exp() * (own - theirs)
    return total


def world(seed: int) -> tuple[Problem, Tensor]:
    problem = make_problem(4, 3, discount=0.99, set_top_p=1.0, seed=seed)
    noise = torch.randn(problem.scores.shape, generator=torch.Generator().manual_seed(seed))
    return problem, (0.7 * noise).double().requires_grad_()


@pytest.mark.parametrize("single_step", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expected_gradient_is_that_of_the_kl_between_responses(
    single_step: bool, seed: int
) -> None:
    problem, table = world(seed)
    exact = torch.autograd.grad(sequence_kl(problem, table), table)[0]
    found = estimate(
        problem,
        replace(PLAIN, single_step=single_step),
        table,
        table.detach().softmax(1),
    )
    assert exact.abs().max() > 0.01
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-10)


def test_weights_undo_the_teachers_part_in_sampling_of_one_token() -> None:
    problem = make_problem(4, 1, discount=0.99, set_top_p=1.0, seed=3)
    table = torch.randn(1, 4, generator=torch.Generator().manual_seed(5)).double().requires_grad_()
    mixed = 0.8 * table.detach().softmax(1) + 0.2 * problem.scores.softmax(1)
    exact = torch.autograd.grad(sequence_kl(problem, table), table)[0]
    sampled = replace(PLAIN, single_step=False)
    torch.testing.assert_close(estimate(problem, sampled, table, mixed), exact)
    # The exact part is weighted too: in expectation it counts every state once.
    torch.testing.assert_close(estimate(problem, PLAIN, table, mixed), exact)


def test_the_gradient_is_zero_at_the_teacher_in_every_variant() -> None:
    problem, _ = world(4)
    table = problem.scores.clone().requires_grad_()
    for changes in ({}, {"single_step": False}, {"length_norm": True}, {"clip_ratio": 0.2}):
        found = estimate(problem, replace(PLAIN, **changes), table, table.detach().softmax(1))
        assert found.abs().max() < 1e-10, changes


def test_length_norm_divides_the_return_by_the_steps_that_it_sums() -> None:
    problem, table = world(5)
    exact = own_samples(problem, table, table.detach().softmax(1))
    teacher = DenseStepScores(problem.scores[exact.state])

    def returns(objective: MiniLLM) -> Tensor:
        return objective.loss(Views(exact.view(table), teacher), exact.batch).parts["return"]

    summed, mean = returns(PLAIN), returns(replace(PLAIN, length_norm=True))
    for row in range(int(exact.batch.row.max()) + 1):
        steps = (exact.batch.row == row).nonzero()[:, 0]
        after = torch.arange(len(steps) - 1, -1, -1).clamp(min=1)
        torch.testing.assert_close(mean[steps], summed[steps] / after)
    assert (summed[~exact.batch.transitions.has_successor] == 0.0).all()  # nothing follows


def test_rows_that_the_student_did_not_write_have_no_part() -> None:
    problem, table = world(6)
    exact = exact_batch(problem, student_share=0.5)
    teacher = DenseStepScores(problem.scores[exact.state])
    loss = PLAIN.loss(Views(exact.view(table), teacher), exact.batch).loss
    assert (loss[exact.batch.expert] == 0.0).all()
    assert (loss[~exact.batch.expert] != 0.0).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_ratio": 1.0}, r"clip_ratio: expected in \(0, 1\) or null"),
        ({"out_of_set": "drop"}, "out_of_set: expected insert or refuse"),
        ({"student_share": 0.0}, "learns from the student's own responses"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        MiniLLM(**changes)
