from __future__ import annotations

import pytest
import torch

from tdistill.core import clipped_policy_loss


@pytest.mark.parametrize("clip", [None, 0.2])
def test_gradient_is_the_policy_gradient_weighted_by_importance(clip: float | None) -> None:
    log_prob = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    behaviour = torch.tensor([-1.1, -1.9, -0.5], dtype=torch.float64)
    advantage = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    loss = clipped_policy_loss(log_prob - behaviour, advantage, clip=clip)
    found = torch.autograd.grad(loss.sum(), log_prob)[0]
    weight = (log_prob - behaviour).exp().detach()
    torch.testing.assert_close(found, -weight * advantage)


def test_clip_stops_the_gradient_only_where_the_step_would_go_further_away() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = clipped_policy_loss(ratio.log(), advantage, clip=0.2)
    found = torch.autograd.grad(loss.sum(), ratio)[0]
    torch.testing.assert_close(loss, torch.tensor([-1.2, 1.5, -0.5, 0.8]))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, -1.0, 0.0]))
