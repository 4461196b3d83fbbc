from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.core import (
    clip_q,
    row_index,
    segment_max,
    set_max_shift,
    soft_value,
    teacher_shift,
    top_p_sets,
)


def test_hand_computed_shift():
    scores, offsets = torch.tensor([1.0, 4.0, -2.0]), torch.tensor([0, 2, 3])
    assert set_max_shift(scores, offsets).tolist() == [4.0, -2.0]


def test_the_shift_pins_the_maximum_to_0_and_bounds_the_value(
    offsets: Tensor, generator: torch.Generator
):
    scores = 9 * torch.randn(54, generator=generator, dtype=torch.float64)
    q = scores - set_max_shift(scores, offsets)[row_index(offsets, len(scores))]
    assert segment_max(q, offsets).tolist() == [0.0] * 6
    value = soft_value(q, offsets)
    assert ((value >= 0) & (value <= offsets.diff().log() + 1e-12)).all()


def test_clip():
    q = torch.tensor([-30.0, -10.0, -1.0, 5.0])
    assert clip_q(q, lowest=-10.0).tolist() == [-10.0, -10.0, -1.0, 5.0]
    assert clip_q(q, lowest=None) is q


def test_no_gradient_below_the_clip():
    q = torch.tensor([-30.0, -1.0], requires_grad=True)
    (grad,) = torch.autograd.grad(clip_q(q, lowest=-10.0).sum(), q)
    assert grad.tolist() == [0.0, 1.0]


def test_gradcheck(offsets: Tensor, generator: torch.Generator):
    scores = 9 * torch.randn(54, generator=generator, dtype=torch.float64)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: set_max_shift(s, offsets), scores)
    assert torch.autograd.gradcheck(lambda s: clip_q(s, lowest=-2.0), scores)


@pytest.mark.parametrize("shift", ["raw", "set-max", "vocabulary-max", "normalised"])
def test_the_teacher_has_the_q_of_a_student_with_its_logits(shift: Any, generator: torch.Generator):
    logits = 5 + 3 * torch.randn(6, 30, generator=generator, dtype=torch.float64)
    sets = top_p_sets(logits.log_softmax(-1), 0.8)
    on_set, log_normaliser = logits[sets.step, sets.ids], logits.logsumexp(-1)
    student = {
        "raw": torch.zeros(6, dtype=torch.float64),
        "set-max": set_max_shift(on_set, sets.offsets),
        "vocabulary-max": logits.max(-1).values,
        "normalised": log_normaliser,
    }[shift]
    constant = teacher_shift(sets.log_probs, log_normaliser, sets.offsets, shift=shift)
    q = sets.log_probs - constant[sets.step]
    torch.testing.assert_close(q, on_set - student[sets.step])
