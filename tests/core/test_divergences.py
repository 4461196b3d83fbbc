from __future__ import annotations

import math

import padded
import pytest
import torch
from torch import Tensor

from tdistill.core import (
    cross_entropy,
    forward_kl,
    log_set_mass,
    project,
    set_forward_kl,
    top_p_sets,
)


@pytest.fixture
def teacher(generator: torch.Generator) -> Tensor:
    return (2 * torch.randn(5, 60, generator=generator, dtype=torch.float64)).log_softmax(-1)


@pytest.fixture
def student(generator: torch.Generator) -> Tensor:
    return (2 * torch.randn(5, 60, generator=generator, dtype=torch.float64)).log_softmax(-1)


def test_hand_computed_values():
    teacher = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
    half_log_2 = torch.tensor([0.5 * math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(forward_kl(teacher, student), half_log_2)
    offsets = torch.tensor([0, 2])
    on_set = set_forward_kl(teacher[0, :2], student[0, :2], offsets)
    torch.testing.assert_close(on_set, half_log_2)
    blind = set_forward_kl(teacher[0, :2], project(student[0, :2], offsets), offsets)
    expected = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    assert blind.item() == pytest.approx(expected, abs=1e-15)
    found = cross_entropy(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0]))
    assert found.tolist() == [1.0, 0.0]


def test_a_divergence_is_positive_and_zero_for_equals(teacher: Tensor, student: Tensor):
    assert (forward_kl(teacher, student) > 0.1).all()
    assert forward_kl(teacher, teacher).abs().max() == 0.0
    torch.testing.assert_close(
        forward_kl(teacher, student), (teacher.exp() * (teacher - student)).sum(-1)
    )


def test_an_impossible_token_costs_nothing_in_value_or_gradient():
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    student = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    value = forward_kl(teacher, student.log_softmax(-1))
    value.sum().backward()
    assert value.abs().item() < 1e-7
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_student_that_rules_out_a_possible_token_is_infinitely_far():
    teacher = torch.tensor([[0.5, 0.5]]).log()
    assert forward_kl(teacher, torch.tensor([[1.0, 0.0]]).log()).tolist() == [math.inf]


def test_the_whole_vocabulary_gives_the_full_divergence(teacher: Tensor, student: Tensor):
    sets = top_p_sets(teacher, 1.0)
    found = set_forward_kl(sets.log_probs, student[sets.step, sets.ids], sets.offsets)
    torch.testing.assert_close(found, forward_kl(teacher, student))


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_equals_the_padded_form_and_the_gap_is_the_set_mass(
    teacher: Tensor, student: Tensor, p: float
):
    sets = top_p_sets(teacher, p)
    members = student[sets.step, sets.ids]
    full = set_forward_kl(sets.log_probs, members, sets.offsets)
    blind = set_forward_kl(sets.log_probs, project(members, sets.offsets), sets.offsets)
    rows, real = padded.pad(sets.log_probs, sets.offsets, 0.0)
    student_rows, _ = padded.pad(members, sets.offsets, 0.0)
    target = padded.project(rows, real)
    expected = padded.expectation(target.masked_fill(~real, 0.0) - student_rows, target, real)
    torch.testing.assert_close(full, expected)
    torch.testing.assert_close(full - blind, -log_set_mass(members, sets.offsets))
    # Any normalisation of the teacher will do.
    shifted = set_forward_kl(sets.log_probs + 3.0, members, sets.offsets)
    torch.testing.assert_close(shifted, full)


def test_cross_entropy_is_minus_the_log_probability(student: Tensor):
    logits = student + 4.0
    found = cross_entropy(logits.logsumexp(-1), logits[:, 7])
    torch.testing.assert_close(found, -student[:, 7])


def test_gradcheck(teacher: Tensor, student: Tensor):
    sets = top_p_sets(teacher, 0.8)
    check = torch.autograd.gradcheck
    teacher, student = teacher.requires_grad_(), student.requires_grad_()
    assert check(forward_kl, (teacher, student))
    both = sets.log_probs.requires_grad_(), student[sets.step, sets.ids].clone()
    assert check(lambda t, s: set_forward_kl(t, s, sets.offsets), both)
    assert check(lambda z: cross_entropy(z.logsumexp(-1), z[:, 0]), student)
