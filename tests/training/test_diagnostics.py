"""What is logged of training: of the objective's sets, and of the teacher's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tdistill.training.diagnostics import Diagnostics
from tdistill.training.objectives import BellmanDistill, Views
from world import Dense, make_batch, random_view


@pytest.mark.parametrize("exact", [False, True], ids=["sampled leak", "exact leak"])
def test_inserted_actions_count_for_the_objective_and_not_as_members_of_the_teachers_set(
    exact: bool,
):
    inserted, plain = (make_batch(out_of_set=how) for how in ("insert", "drop"))
    assert len(inserted.sets.ids) - len(plain.sets.ids) == int(inserted.out_of_set.sum()) > 0
    assert torch.equal(inserted.teacher_sets.ids, plain.sets.ids)
    assert torch.equal(inserted.teacher_sets.offsets, plain.sets.offsets)
    logits, view = random_view(inserted)
    if exact:
        assert view.log_normaliser is not None  # then the leak is of every step
    result = BellmanDistill().loss(Views(view), inserted)
    diagnostics = Diagnostics(by_source=False)
    diagnostics.observe(view, inserted, result)
    found, steps = diagnostics.take(lambda sums: [sums])
    assert steps == len(inserted.action)

    teacher, own = Dense.of(plain), Dense.of(inserted)
    logits = logits.detach()
    policy: Any = logits.masked_fill(~teacher.inside, float("-inf")).log_softmax(1)
    divergence = torch.where(teacher.inside, teacher.policy * (teacher.policy.log() - policy), 0.0)
    assert found["set_kl"] == pytest.approx(float(divergence.sum(1).mean()), rel=1e-4)
    leak = (logits.softmax(1) * ~teacher.inside).sum(1)
    assert found["leak"] == pytest.approx(float(leak.mean()), rel=1e-4)
    entropy = -torch.where(teacher.inside, policy.exp() * policy, 0.0).sum(1)
    assert found["entropy"] == pytest.approx(float(entropy.mean()), rel=1e-4)
    assert found["value"] == pytest.approx(float(own.on_set(logits).mean()), rel=1e-4)


def test_a_process_may_have_rows_of_an_origin_that_another_has_not():
    one, two = Diagnostics(by_source=True), Diagnostics(by_source=True)
    marks = torch.tensor([True, True, False])
    one.add("step_loss", torch.tensor([1.0, 2.0, 9.0]), marks)
    two.add("step_loss", torch.tensor([6.0, 9.0, 9.0]), marks)
    two.add("step_loss.student", torch.tensor([6.0, 8.0, 9.0]), marks)
    sent: list[dict[str, tuple[float, float]]] = []
    two.take(lambda sums: sent.append(sums) or [sums])
    means, steps = one.take(lambda sums: [sums, *sent])
    assert means == {"step_loss": 4.5, "step_loss.student": 7.0}
    assert steps == 4.0
    one.add("step_loss", torch.tensor([1.0]), marks[:1])
    assert one.take(lambda sums: [sums]) == ({"step_loss": 1.0}, 1.0)
