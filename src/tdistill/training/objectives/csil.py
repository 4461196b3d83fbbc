"""Coherent soft imitation: the cloned policy's own log-probability as the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Card, StepLoss, Views
from tdistill.training.objectives.soft_td import SoftReturns

if TYPE_CHECKING:
    from tdistill.evidence.batch import Batch

__all__ = ["CSIL"]


@dataclass(frozen=True)
class CSIL(SoftReturns):
    """Coherent soft imitation: soft TD on ``r = c log proj_p pi*(a|s)``, anchored by cloning.

    Minimises ``(Q - G)^2 + w KL(proj_p pi* || pi) - log m(s)``, G the soft return of r. A cloned
    policy is optimal for its own log-probability, a shaped form of the true reward; here the
    teacher is that policy, so nothing is learned in two phases and the reward needs no refinement.
    It takes away the freedom that lets chi-square pull towards reward 0: the reward is known and
    the value is 0 at every state.

    With c = 1 the optimum is proj_p of the teacher at every discount and every w: V = 0 and Q = log
    proj_p pi*, so that V = 0 is also what follows a cut. Another c keeps that optimum only for w
    large; at w = 0 it is the soft-optimal policy of c log pi*, sharper over whole responses for
    c > 1. The authors subtract a prior; a uniform one over sets of unequal sizes would favour
    states with many choices, so there is none.
    """

    name: ClassVar[str] = "csil"
    card: ClassVar[Card] = Card(
        family="temporal-difference",
        minimises="(Q - G)^2 on r = c log proj_p pi*, + w KL(proj_p pi* || pi); -log set mass",
        optimum="proj_p pi*, V = 0 (c = 1); soft-optimal for c log proj_p pi* (w = 0)",
        bias="none at c = 1; c times the teacher's log-odds over whole responses at w = 0",
        data="any responses with sets",
        cost="K D, and V D with normaliser: vocabulary",
        reference="Watson et al., 2023, arXiv 2305.16498",
    )
    reward_scale: float = 1.0  # c: of the reward's temperature to the entropy's
    cloning_weight: float = 1.0  # w; it also holds actions that no row took

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check("reward_scale", self.reward_scale > 0.0, "above 0", self.reward_scale)
        check("cloning_weight", self.cloning_weight >= 0.0, "at least 0", self.cloning_weight)

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """Squared error of the return, cloning on the set, and the cost of mass off it."""
        log_mass = core.log_set_mass(batch.sets.log_probs, batch.sets.offsets)
        reward = self.reward_scale * (batch.teacher_action_log_prob - log_mass)
        squared = self.squared_error(views, batch, reward)
        log_policy = core.project(views.student.on_set, batch.sets.offsets)
        cloning = core.set_forward_kl(batch.sets.log_probs, log_policy, batch.sets.offsets)
        parts = {**squared.parts, "cloning": cloning}
        return StepLoss(squared.loss + self.cloning_weight * cloning, parts)
