"""Imitation by constant rewards: SQIL and LS-IQ, on expert rows and the student's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Card, StepLoss, Views
from tdistill.training.objectives.temporal_difference import TemporalDifference

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.evidence.batch import Batch

__all__ = ["LSIQ", "SQIL"]


@dataclass(frozen=True)
class ConstantRewards(TemporalDifference):
    """Base of the objectives whose reward says only who wrote a row.

    ``balance: sources`` is the papers' form, a mean over each source, of half the weight. Under
    ``steps`` one mean is taken over all, where an expert that writes 256 tokens weighs five times
    as much as a student that writes 50, and ``student_share`` shifts the optimum.
    """

    balance: Literal["sources", "steps"] = "sources"  # what the means over rows are taken over

    def __post_init__(self) -> None:
        """Refuse a row with a gap: the value that constant rewards have behind it is unknown."""
        super().__post_init__()
        whole = self.out_of_set != "drop"
        check("out_of_set", whole, "insert or refuse: rows must be whole here", self.out_of_set)

    def balanced(self, squares: Tensor, views: Views, batch: Batch) -> Tensor:
        """Squared errors, weighed so that a mean over all steps is what ``balance`` says."""
        if self.balance == "steps":
            return squares
        return squares * views.counts_of(batch).over_source(batch.expert) / 2


@dataclass(frozen=True)
class SQIL(ConstantRewards):
    """Soft Q-learning with one constant reward on expert rows and none on the student's.

    Minimises ``E_E (Q - (R + y))^2 + lambda E_P (Q - y)^2``, ``y = discount V(s')``. With the
    successor's gradient stopped the optimum is the soft-optimal Q of the reward ``R e / (e + lambda
    p)``, where e and p are the weights with which an expert and the student took this action here:
    a policy that prefers expert actions, but not the teacher's. Every expert step pays, an ended or
    cut response pays nothing more: long responses are preferred, up to the length limit.

    The reward is in nats, for a soft value of temperature 1; a temperature tau is R / tau.
    """

    name: ClassVar[str] = "sqil"
    card: ClassVar[Card] = Card(
        family="temporal-difference",
        minimises="E_E (Q - R - y)^2 + lambda E_P (Q - y)^2, y = discount V'; -log set mass",
        optimum="soft-optimal for the reward R e / (e + lambda p); not the teacher",
        bias="large: constant rewards, long responses preferred",
        data="teacher and student responses with sets",
        cost="K D, and V D with normaliser: vocabulary",
        reference="Reddy et al., 2019, arXiv 1905.11108",
    )
    needs_student_rows: ClassVar[bool] = True

    student_share: float = 0.5
    successor: Literal["residual", "semi", "target"] = "semi"
    expert_reward: float = 1.0  # R, nats
    student_weight: float = 1.0  # lambda

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check("expert_reward", self.expert_reward > 0.0, "above 0", self.expert_reward)
        check("student_weight", self.student_weight >= 0.0, "at least 0", self.student_weight)

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """Squared soft Bellman error, and the cost of mass off the set."""
        q, q_a = self.q_values(views.student)
        value = core.soft_value(q, batch.sets.offsets)
        next_value = self.next_values(value, views, batch)
        expert = batch.expert.to(q_a.dtype)
        error = core.td_error(
            q_a, self.expert_reward * expert, next_value, batch.transitions.discount
        )
        weight = expert + self.student_weight * (1.0 - expert)
        leak = self.leak_cost(views.student)
        parts = {"td_error": error, "leak_cost": leak, "value": value}
        return StepLoss(self.balanced(weight * error**2, views, batch) + leak, parts)


@dataclass(frozen=True)
class LSIQ(ConstantRewards):
    """Least squares inverse Q-learning: bounded constant rewards, V instead of Q on student rows.

    Minimises ``E_E (Q - (r_max + y))^2 + E_P (V - (r_min + y))^2`` with ``r_max = 1/c``, ``r_min =
    -1/c`` and ``y = discount V(s')``, V(s') clipped to the values such rewards can reach,
    ``+-1/(c (1 - gamma))``. It completes the square of IQ-Learn with chi-square over the mixture of
    expert and student, of equal parts: the implied reward is bounded. The clip ignores the entropy
    that V also holds, as the authors do.

    ``absorbing`` gives the end of a response, and a cut, the value of staying at its reward for
    ever, so that neither long nor short responses are preferred for their length alone. With the
    gradient of the successor stopped, the optimum is the fixed point state by state; it is not the
    teacher.

    Rewards are in nats, at temperature 1. The authors take c = 0.5 with an entropy of weight 0.001
    to 0.1, which is c = 0.0005 to 0.05 here: nearly greedy.
    """

    name: ClassVar[str] = "ls_iq"
    card: ClassVar[Card] = Card(
        family="temporal-difference",
        minimises="E_E (Q - 1/c - y)^2 + E_P (V + 1/c - y)^2, y clipped; -log set mass",
        optimum="the fixed point of its two regressions; not the teacher",
        bias="large: constant rewards",
        data="teacher and student responses with sets",
        cost="K D, and V D with normaliser: vocabulary",
        reference="Al-Hafez et al., 2023, arXiv 2303.00599",
    )
    needs_student_rows: ClassVar[bool] = True

    student_share: float = 0.5
    successor: Literal["residual", "semi", "target"] = "semi"
    penalty: float = 0.5  # c, of the squared reward: rewards are within +-1/c nats
    expert_target: Literal["bootstrap", "fixed"] = "bootstrap"  # fixed: the largest reachable Q
    clip_targets: bool = True
    absorbing: bool = True  # an end or cut is worth its reward for ever

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check("penalty", self.penalty > 0.0, "above 0", self.penalty)
        check("discount", self.discount < 1.0, "below 1: values need a bound", self.discount)

    @property
    def largest_value(self) -> float:
        """``1/(c (1 - gamma))``: the discounted sum of the largest rewards, nats."""
        return 1.0 / (self.penalty * (1.0 - self.discount))

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """Squared errors of Q on expert rows and of V on the others; the cost of mass off it."""
        q, q_a = self.q_values(views.student)
        value = core.soft_value(q, batch.sets.offsets)
        next_value = self.next_values(value, views, batch)
        if self.clip_targets:
            next_value = next_value.clamp(-self.largest_value, self.largest_value)
        estimate = q_a.where(batch.expert, value)
        error = core.td_error(
            estimate, self._reward(batch, q_a), next_value, batch.transitions.discount
        )
        if self.expert_target == "fixed":
            error = (self.largest_value - q_a).where(batch.expert, error)
        leak = self.leak_cost(views.student)
        parts = {"td_error": error, "leak_cost": leak, "value": value}
        return StepLoss(self.balanced(error**2, views, batch) + leak, parts)

    def _reward(self, batch: Batch, like: Tensor) -> Tensor:
        size = like.new_full(like.shape, 1.0 / self.penalty)
        if self.absorbing:
            size = size.masked_fill(~batch.transitions.has_successor, self.largest_value)
        return size.where(batch.expert, -size)
