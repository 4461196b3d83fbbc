"""Soft temporal differences on the teacher's own reward: one step, K steps, lambda, consistency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tdistill import core
from tdistill.checks import check, check_at_least
from tdistill.training.objectives.base import Card, StepLoss, Views
from tdistill.training.objectives.temporal_difference import TemporalDifference

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.evidence.batch import Batch
    from tdistill.models.set_scores import SetScores

__all__ = ["PathConsistency", "SoftTD"]


@dataclass(frozen=True)
class SoftReturns(TemporalDifference):
    """Base of the objectives that regress Q on the soft return of a known reward.

    A cut row ends where it was cut: its last reward holds what the objective knows of V(s'). An
    unknown V(s') there would leave V(s), and so every policy on the way to it, undetermined.
    """

    returns: Literal["one-step", "k-step", "lambda"] = "one-step"
    horizon: int = 8  # K of returns: k-step
    trace: float = 0.9  # lambda of returns: lambda

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_at_least(1, horizon=self.horizon)
        check("trace", 0.0 <= self.trace <= 1.0, "a value in [0, 1]", self.trace)

    def squared_error(self, views: Views, batch: Batch, reward: Tensor) -> StepLoss:
        """``(Q - G)^2`` and the cost of mass off the set.

        Args:
            views: the models at the batch.
            batch: rows and evidence.
            reward: of every step; at a cut with ``discount V(s')`` in it, nats.
        """
        q_a, value = self._at_actions(views.student)
        error = self._return(q_a, value, views, batch, reward) - q_a
        leak = self.leak_cost(views.student)
        return StepLoss(error**2 + leak, {"td_error": error, "leak_cost": leak, "value": value})

    def _at_actions(self, view: SetScores) -> tuple[Tensor, Tensor]:
        q, q_a = self.q_values(view)
        return q_a, core.soft_value(q, view.sets.offsets)

    def _return(
        self, q_a: Tensor, value: Tensor, views: Views, batch: Batch, reward: Tensor
    ) -> Tensor:
        """G of every step: where the gradient stops, the whole of it stops."""
        if self.successor == "target":
            assert views.target is not None, "the trainer gives a target network where it is needed"
            q_a, value = self._at_actions(views.target)
        if self.successor != "residual":
            q_a, value = q_a.detach(), value.detach()
        links = core.ended_at_cuts(batch.transitions)
        path = (reward, q_a - value, value, links)
        if self.returns == "lambda":
            return core.lambda_return(*path, trace=self.trace)
        horizon = self.horizon if self.returns == "k-step" else 1
        return core.k_step_return(*path, horizon=horizon)


@dataclass(frozen=True)
class SoftTD(SoftReturns):
    """Squared soft TD error on the reward that makes the teacher's logits optimal.

    Minimises ``(Q(s,a) - G)^2 - log m(s)``: G is the soft return of the teacher's own reward
    ``r_T = Q_T(s,a) - discount V_T(s')``, m the student's mass on the set (left out with
    ``normaliser: set``). The optimum is Q_T itself on the sets, so proj_p of the teacher, whatever
    policy wrote the rows and for every return. With ``teacher_value: vocabulary`` the reward is the
    teacher's in the untruncated MDP and the optimum is Q_p* of (2.4), below Q_T by at most
    kappa(p); only ``shift: raw`` leaves V(s) free enough for it. Under ``shift: normalised`` the
    reward asks for the teacher's mass off the set, against the last term. ``shift: set-max`` is not
    smooth and can end in a local minimum.

    ``residual`` is safe where successors are deterministic, as here; ``semi`` and ``target`` stop
    the gradient of the whole return and have the same optimum. At the last step of a cut row V(s')
    is the teacher's, so that the target is Q_T(s,a) itself, under every ``teacher_value``.
    """

    name: ClassVar[str] = "soft_td"
    card: ClassVar[Card] = Card(
        family="temporal-difference",
        minimises="(Q - G)^2, G the soft return of r_T = Q_T - discount V_T'; -log set mass",
        optimum="proj_p pi*, Q = Q_T on the sets (raw shift); Q_p* with teacher_value: vocabulary",
        bias="none; Q_T is at most (3.3) above Q_p*",
        data="any responses with sets",
        cost="K D, and V D with normaliser: vocabulary",
        reference="Nachum et al., 2017, arXiv 1702.08892; Schulman et al., 2017, arXiv 1704.06440",
    )
    teacher_value: Literal["set", "vocabulary"] = "set"  # what V_T(s') of r_T sums over

    @property
    def reads_normaliser(self) -> bool:
        """The teacher's raw Q is its log-probabilities and log-normaliser."""
        return self.shift == "raw"

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """Squared error of the return, and the cost of mass off the set."""
        return self.squared_error(views, batch, self.reward(batch))

    def reward(self, batch: Batch) -> Tensor:
        """The reward that is learned from [T], nats; at a cut, all of Q_T(s,a)."""
        reward = self.teacher_reward(batch)
        if self.teacher_value == "set":
            return reward
        # V_T over the set is V_T over the vocabulary plus log m_p.
        lost = core.log_set_mass(batch.sets.log_probs, batch.sets.offsets)
        return reward + batch.transitions.discount * core.successor(
            lost, batch.transitions.has_successor
        )


@dataclass(frozen=True)
class PathConsistency(SoftTD):
    """Squared residual of path consistency over windows of K steps, gradient through everything.

    Minimises ``(-V(s_t) + disc^d V(s_{t+d}) + sum_{j<d} disc^j (r_{t+j} - log pi(a|s)))^2``, which
    is the K-step soft TD error with the residual gradient: ``V + log pi = Q``.
    """

    name: ClassVar[str] = "path_consistency"
    card: ClassVar[Card] = Card(
        family="temporal-difference",
        minimises="squared path residual over K steps on r_T; -log set mass",
        optimum="proj_p pi*, Q = Q_T on the sets (raw shift)",
        bias="none; Q_T is at most (3.3) above Q_p*",
        data="any responses with sets",
        cost="K D, and V D with normaliser: vocabulary",
        reference="Nachum et al., 2017, arXiv 1702.08892",
    )
    returns: Literal["one-step", "k-step", "lambda"] = "k-step"

    def __post_init__(self) -> None:
        """Refuse a gradient that stops: that is soft_td."""
        super().__post_init__()
        check(
            "successor", self.successor == "residual", "residual (else use soft_td)", self.successor
        )
