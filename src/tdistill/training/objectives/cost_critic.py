"""What the objectives with a critic of the cost to go share: its settings, targets and loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tdistill import core
from tdistill.checks import check, check_at_least
from tdistill.training.objectives.base import Objective, Views
from tdistill.training.objectives.cloning import outcomes
from tdistill.training.objectives.critic_config import CriticConfig

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.evidence.batch import Batch
    from tdistill.models.set_scores import SetScores

__all__ = ["CostCritic"]


@dataclass(frozen=True)
class CostCritic(Objective):
    """Base of the objectives whose critic learns g(s,a), the cost to go of (9.4), by TD."""

    critic: CriticConfig = field(default_factory=CriticConfig)
    returns: Literal["one-step", "k-step", "lambda", "monte-carlo"] = "lambda"
    horizon: int = 8  # K of returns: k-step
    trace: float = 0.9  # lambda of returns: lambda
    at_cuts: Literal["value", "nothing"] = "value"  # what is counted behind a cut; see cost_to_go
    critic_updates: int = 0  # first updates at which g counts as 0 and the critic learns alone
    shuffled: bool = False  # a control: the critic learns the returns of other steps

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_at_least(1, horizon=self.horizon)
        check_at_least(0, critic_updates=self.critic_updates)
        check("trace", 0.0 <= self.trace <= 1.0, "a value in [0, 1]", self.trace)
        whole = self.at_cuts == "value" or self.out_of_set != "drop"
        wanted = "insert or refuse under at_cuts: nothing, which is about whole rows"
        check("out_of_set", whole, wanted, self.out_of_set)

    @property
    def critic_config(self) -> CriticConfig:
        """As the field says."""
        return self.critic

    def forward_cost(self, view: SetScores, batch: Batch) -> Tensor:
        """``KL(T || pi)`` of every step [T], T the projected teacher, nats."""
        teacher, student, rows = outcomes(view, batch, "projected")
        return core.segment_sum(core.forward_kl_terms(teacher, student), rows)

    def reverse_cost(self, view: SetScores, batch: Batch) -> Tensor:
        """``KL(pi || T)`` of every step [T], all mass off the set one more outcome, nats."""
        teacher, student, rows = outcomes(view, batch, "set-and-tail")
        return core.segment_sum(core.reverse_kl_terms(teacher, student), rows)

    def cost_to_go(
        self, views: Views, batch: Batch, cost: Tensor, log_policy: Tensor, log_ratio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Targets of g at the actions [T], nats, and the steps that have one [T].

        A target is 0 after an end token; the last step of a cut response has none, and the state
        before it the critic's value. Under ``at_cuts: nothing`` every row counts as ended, a
        control that learns the cost of what was written alone. Lambda and Monte-Carlo returns are
        Retrace's, so that their fixed point is g of the policy whatever policy wrote the rows;
        K-step returns are of the rows as they are.

        Args:
            views: the models at the batch; the averaged critic gives what is bootstrapped.
            batch: rows and evidence.
            cost: c(s) of every step, nats.
            log_policy: of the policy that goes on, on the sets.
            log_ratio: of that policy to the one that wrote the rows, at the actions, nats.
        """
        averaged, links = views.averaged_critic, batch.transitions
        assert averaged is not None, "the trainer gives a critic where one is needed"
        if self.at_cuts == "nothing":
            links = core.ended_at_cuts(links)
        cost = cost.detach()
        none = cost.new_zeros(cost.shape)
        value = core.state_cost(cost, averaged.on_set, log_policy.detach(), batch.sets.offsets)
        if self.returns in ("lambda", "monte-carlo"):
            trace = 1.0 if self.returns == "monte-carlo" else self.trace
            path = (none, averaged.action, value, log_ratio.detach(), links)
            return core.retrace_return(*path, trace=trace), links.can_bootstrap
        horizon = self.horizon if self.returns == "k-step" else 1
        target = core.k_step_return(none, -cost, value, links, horizon=horizon)
        return target, links.can_bootstrap

    def critic_loss(
        self, views: Views, target: Tensor, known: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``(G - g(s,a))^2`` of the steps with a target [T], and what is logged of it."""
        import torch

        assert views.critic is not None, "the trainer gives a critic where one is needed"
        if self.shuffled:
            place = known.nonzero().squeeze(1)
            order = torch.randperm(len(place), device=place.device)
            target = target.index_copy(0, place, target[place[order]])
        error = (target - views.critic.action).where(known, target.new_zeros(()))
        return error**2, {"critic_error": error, "critic_return": target}
