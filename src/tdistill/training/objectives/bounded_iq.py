"""Cloning with the implied reward held in a band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Card, StepLoss, Views
from tdistill.training.objectives.temporal_difference import TemporalDifference

if TYPE_CHECKING:
    from tdistill.evidence.batch import Batch

__all__ = ["BoundedIQ"]


@dataclass(frozen=True)
class BoundedIQ(TemporalDifference):
    """Cloning with the implied reward held in a band: Bellman constraints instead of chi-square.

    Minimises ``-log pi(a|s)`` on expert rows and, on all rows, ``w (r - [r])^2`` for the reward ``r
    = Q(s,a) - discount V(s')`` and its nearest value [r] in the band. Chi-square pulls every reward
    to 0 and so the policy away from the teacher; a band leaves the teacher optimal as soon as some
    V gives all of its rewards inside: ``high >= 0`` and ``low <= min log proj_p pi*`` are enough,
    at V = 0. On student rows the band is all there is: it carries values from states that the
    teacher visited to others.

    Only the Bellman constraint is theirs: they pair it with the online second term of IQ-Learn,
    which here is the offline one, cloning.
    """

    name: ClassVar[str] = "bounded_iq"
    card: ClassVar[Card] = Card(
        family="temporal-difference",
        minimises="-log pi(a|s) + w (r outside [low, high])^2, r = Q - discount V'",
        optimum="the policy that wrote the rows if its rewards fit the band; else pulled into it",
        bias="none in a wide band; at zero width that of chi-square, alpha = 1/(4 w)",
        data="teacher responses with sets; student responses add constraints",
        cost="K D, and V D with normaliser: vocabulary",
        reference="Xu et al., 2026, arXiv 2603.22713",
    )
    successor: Literal["residual", "semi", "target"] = "semi"
    lowest_reward: float = -10.0  # nats; about the smallest log-probability on the sets
    highest_reward: float = 1.0  # nats
    penalty: float = 1.0  # w

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check("penalty", self.penalty >= 0.0, "at least 0", self.penalty)
        ordered = self.lowest_reward <= self.highest_reward
        check("lowest_reward", ordered, "at most highest_reward", self.lowest_reward)

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """Cloning of the expert, the squared excess of the reward, the cost of mass off the set."""
        q, q_a = self.q_values(views.student)
        value = core.soft_value(q, batch.sets.offsets)
        reward = core.implied_reward(
            q_a, self.next_values(value, views, batch), batch.transitions.discount
        )
        below = (self.lowest_reward - reward).clamp(min=0.0)
        above = (reward - self.highest_reward).clamp(min=0.0)
        excess = (below**2 + above**2).where(self.reward_steps(batch), reward.new_zeros(()))
        linear = core.iq_learn_linear_term(value, q_a).where(batch.expert, reward.new_zeros(()))
        leak = self.leak_cost(views.student)
        parts = {"linear": linear, "excess": excess, "implied_reward": reward, "value": value}
        return StepLoss(linear + self.penalty * excess + leak, parts)
