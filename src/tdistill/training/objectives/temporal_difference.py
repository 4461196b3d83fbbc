"""What the temporal-difference objectives share: how logits become Q, and where gradients stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Objective, Views

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.evidence.batch import Batch
    from tdistill.models.set_scores import SetScores

__all__ = ["TemporalDifference"]


@dataclass(frozen=True)
class TemporalDifference(Objective):
    """Base of the objectives that bootstrap V(s'); the student's logits are Q up to a shift."""

    normaliser: Literal["set", "vocabulary", "sampled"] = "vocabulary"  # set: mass off it is free
    negatives: int = 1024  # tokens an update that stand in for the vocabulary; normaliser: sampled
    shift: Literal["raw", "set-max", "vocabulary-max", "normalised"] = "raw"
    q_min: float | None = None  # lower clip of Q; null leaves it
    successor: Literal["residual", "semi", "target"] = "residual"  # gradient through V(s')
    target_decay: float = 0.99  # of the averaged copy that gives V(s') under successor: target

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check("negatives", self.negatives > 0, "at least 1", self.negatives)
        check("target_decay", 0.0 <= self.target_decay < 1.0, "in [0, 1)", self.target_decay)

    @property
    def sampled_negatives(self) -> int | None:
        """Only for the sampled normaliser."""
        return self.negatives if self.normaliser == "sampled" else None

    @property
    def linear_in_normaliser(self) -> bool:
        """In the cost of mass off the set; ``shift: normalised`` needs it at every step."""
        return self.shift != "normalised"

    @property
    def target_network(self) -> float | None:
        """Only for the target-network successor."""
        return self.target_decay if self.successor == "target" else None

    def q_values(self, view: SetScores) -> tuple[Tensor, Tensor]:
        """Q of the set members [M] and of the actions [T]: logits, shifted and clipped."""
        shift = self.shift_of(view)
        q = core.clip_q(view.on_set - shift[view.sets.step], lowest=self.q_min)
        return q, core.clip_q(view.action - shift, lowest=self.q_min)

    def shift_of(self, view: SetScores) -> Tensor:
        """The constant per state that turns logits into Q [T]."""
        if self.shift == "set-max":
            return core.set_max_shift(view.on_set, view.sets.offsets)
        if self.shift == "vocabulary-max":
            return view.maximum
        if self.shift == "normalised":
            return view.log_normaliser
        return view.action.new_zeros(view.action.shape)

    def teacher_q(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Q of the teacher, as :meth:`q_values` of the student: set members [M], actions [T]."""
        evidence = (batch.sets.log_probs, batch.teacher_log_normaliser, batch.sets.offsets)
        shift = core.teacher_shift(*evidence, shift=self.shift)
        q = core.clip_q(batch.sets.log_probs - shift[batch.sets.step], lowest=self.q_min)
        return q, core.clip_q(batch.teacher_action_log_prob - shift, lowest=self.q_min)

    def teacher_reward(self, batch: Batch) -> Tensor:
        """``r_T = Q_T(s,a) - discount V_T(s')`` [T]: the reward that the teacher's Q implies.

        At a cut, where V_T(s') is unknown, it is the whole of Q_T(s,a).
        """
        q, q_a = self.teacher_q(batch)
        value = core.soft_value(q, batch.sets.offsets)
        following = core.successor(value, batch.transitions.has_successor)
        return core.implied_reward(q_a, following, batch.transitions.discount)

    def reward_steps(self, batch: Batch) -> Tensor:
        """Where the implied reward is held to something [T].

        With the gradient through V(s'), the values of cut rows follow their rewards, and their last
        step, whose V(s') is unknown, is left out. Where the gradient stops nothing else would ever
        hold V of that last state, from which the rewards before it are taken: there a cut row ends
        where it was cut, V(s') = 0, or the teacher's where its reward is the measure.
        """
        known = batch.transitions.can_bootstrap
        return known if self.successor == "residual" else known | True

    def first_value(self, view: SetScores, set_value: Tensor) -> Tensor:
        """V(s) of the cloning term [T]: over the set, or over what ``normaliser`` names.

        It is never below V of the set, also where ``q_min`` has raised that.
        """
        return set_value + self.leak_cost(view)

    def next_values(self, set_value: Tensor, views: Views, batch: Batch) -> Tensor:
        """V_p(s') at every step [T]: where the gradient stops."""
        return core.successor(self._bootstrap(set_value, views), batch.transitions.has_successor)

    def leak_cost(self, view: SetScores) -> Tensor:
        """``-log`` of the student's mass on the set [T], 0 with ``normaliser: set``.

        What a loss on set members needs beside itself: it gives no gradient to logits off the set.
        Neither ``shift`` nor ``q_min`` has a part in it: they make Q, not the policy.
        """
        if self.normaliser == "set":
            return view.set_value.new_zeros(view.set_value.shape)
        if self.normaliser == "sampled":
            return view.sampled_log_normaliser(self.negatives) - view.set_value
        return view.loss_normaliser - view.set_value

    def _bootstrap(self, set_value: Tensor, views: Views) -> Tensor:
        if self.successor == "residual":
            return set_value
        if self.successor == "semi":
            return set_value.detach()
        assert views.target is not None, "the trainer gives a target network where it is needed"
        q, _ = self.q_values(views.target)
        return core.soft_value(q, views.target.sets.offsets).detach()
