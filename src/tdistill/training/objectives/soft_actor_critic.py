"""Soft actor-critic in the top-p MDP, on the student's own responses (9.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Card, StepLoss, Views
from tdistill.training.objectives.cloning import outcomes
from tdistill.training.objectives.cost_critic import CostCritic

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.evidence.batch import Batch

__all__ = ["SoftActorCritic"]


@dataclass(frozen=True)
class SoftActorCritic(CostCritic):
    """Minimises ``KL(pi || pi*)`` over whole responses, what follows a step by a learned critic.

    The outcomes of a step are the set members, with the teacher's probabilities as they are, and
    one more, all that is off the set, whose cost to go is ``off_set``'s. ``all-actions``: the exact
    mean over them, ``sum pi (log pi / T + g)``. ``sampled-action``: the policy gradient of the
    action that was taken, its advantage the return of the row less ``c(s) + E[g]``, divided by the
    root mean square of advantages in earlier updates.

    The critic's returns cut the trace by ``min(1, pi / behaviour)``: responses are some updates
    old, and the teacher's rows are learned from, too. With discount 0 it is the reverse KL.
    ``returns: monte-carlo`` with ``sampled-action`` is REINFORCE with a learned baseline.
    """

    name: ClassVar[str] = "soft_actor_critic"
    card: ClassVar[Card] = Card(
        family="online",
        minimises="sum over A and the rest of pi (log pi / pi* + g); (G - g)^2 apart",
        optimum="pi* where the student can be it; else the best whole responses that it can carry",
        bias="none where the student can be the teacher; off_set and discount bring some elsewhere",
        data="responses of the student and of the teacher, with the teacher's sets",
        cost="V D and K D, K D of the critic, and sampling and scoring the student's responses",
        reference="method.md, section 9, (9.5); Haarnoja et al., 2018, arXiv 1801.01290",
    )
    needs_student_rows: ClassVar[bool] = True

    student_share: float = 0.5  # of each batch: the student's own responses
    discount: float = 0.8  # of the cost to go
    actor: Literal["all-actions", "sampled-action"] = "all-actions"
    expert_rows: Literal["actor", "clone"] = "actor"  # loss on the teacher's rows; clone: kd's
    off_set: Literal["mean", "worst"] = "worst"  # g of what is off the set: of its members' g
    clip_ratio: float | None = 0.2  # of pi / behaviour under sampled-action, as in PPO; null: none

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        clip = self.clip_ratio
        check("clip_ratio", clip is None or 0.0 < clip < 1.0, "in (0, 1) or null", clip)
        whole = self.actor == "all-actions" or self.out_of_set != "drop"
        wanted = "insert or refuse: the return of a sampled action needs whole rows"
        check("out_of_set", whole, wanted, self.out_of_set)
        wanted = "above 0: the sampled action is the student's own"
        own = self.actor == "all-actions" or self.expert_rows == "clone" or self.uses_student_rows
        check("student_share", own, wanted, self.student_share)

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """The actor's loss, the clone's where asked for, and the critic's."""
        assert views.critic is not None, "the trainer gives a critic where one is needed"
        student, offsets = views.student, batch.sets.offsets
        teacher, policy, rows = outcomes(student, batch, "set-and-tail")
        cost = core.segment_sum(core.reverse_kl_terms(teacher, policy), rows)
        on_set = core.project(student.on_set, offsets).detach()
        counts = 0.0 if views.update < self.critic_updates else 1.0
        to_go = counts * views.critic.on_set.detach()
        actor = core.segment_sum(
            core.soft_actor_terms(teacher, policy, self._with_rest(to_go, on_set, offsets)), rows
        )
        log_ratio = self.log_prob(views) - batch.behaviour_log_prob
        target, known = self.cost_to_go(views, batch, cost, on_set, log_ratio)
        critic, parts = self.critic_loss(views, target, known)
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        if self.actor == "sampled-action":
            # At the end of a cut row the return is what the critic expects.
            to_go_a = target.where(known, views.critic.action.detach())
            taken, sums["squared_advantage"] = self._taken(views, batch, actor.detach(), to_go_a)
            actor = taken.where(~batch.expert, actor)
        if self.expert_rows == "clone":
            actor = self.forward_cost(student, batch).where(batch.expert, actor)
        parts |= {"cost": cost, "critic_spread": core.spread(to_go, on_set, offsets)}
        return StepLoss(actor, parts, critic, sums)

    def _with_rest(self, to_go: Tensor, policy: Tensor, offsets: Tensor) -> Tensor:
        """g of the outcomes: of the members, and last that of what is off the set."""
        if self.off_set == "mean":
            rest = core.expectation(to_go, policy, offsets)
        else:
            rest = core.segment_max(to_go, offsets)
        return core.with_rest(to_go, rest, offsets)[0]

    def log_prob(self, views: Views) -> Tensor:
        """The student's log-probability of the actions [T], nats."""
        return views.student.action - views.student.log_normaliser

    def _taken(
        self, views: Views, batch: Batch, baseline: Tensor, to_go: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The clipped policy gradient of the actions taken, and the sums of squared advantages."""
        log_prob = self.log_prob(views)
        own = log_prob.detach() - batch.teacher_action_log_prob
        gain = baseline - (own + to_go)
        mine = (~batch.expert & batch.trained).to(gain.dtype)
        total, count = (mine * gain.square()).sum(), mine.sum()
        # In the first update no size is known yet: that of a part of it would depend on the parts.
        size = views.means.get("squared_advantage", gain.new_tensor(float("inf")))
        gain = gain / size.clamp(min=1e-12).sqrt()
        log_ratio = log_prob - batch.behaviour_log_prob
        loss = core.clipped_policy_loss(log_ratio, gain, clip=self.clip_ratio)
        return loss, (total, count)
