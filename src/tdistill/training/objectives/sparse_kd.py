"""Cloning from sparse evidence that is unbiased: the head exactly, the tail by samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tdistill import core
from tdistill.checks import check
from tdistill.errors import InvalidValueError
from tdistill.training.objectives.base import Card, Objective, StepLoss, Views

if TYPE_CHECKING:
    from tdistill.evidence.batch import Batch

__all__ = ["SparseKD"]


@dataclass(frozen=True)
class SparseKD(Objective):
    """Forward KL over the whole vocabulary from the cache, without bias.

    The captured set is summed exactly and the mass off it stands on the tail tokens that were
    sampled when it was captured (``rollouts.capture.tail_samples``). The optimum is the teacher,
    where that of plain truncation is proj_p of it: a head inflated by 1/m, and no tail.

    The tail was drawn off the set as captured, so the set may not be cut; an action that was
    inserted into its set is left out of the head, for its mass is in the tail already.
    """

    name: ClassVar[str] = "sparse_kd"
    card: ClassVar[Card] = Card(
        family="cloning",
        minimises="KL(pi* || pi), its tail estimated from cached samples",
        optimum="pi*",
        bias="none: an unbiased estimate over the vocabulary",
        data="teacher responses with sets and sampled tails",
        cost="V D",
        reference="Anshumann et al., 2025, arXiv 2503.16870",
    )
    needs_tails: ClassVar[bool] = True
    set_top_p: float | None = None  # null: the tail was sampled off all that was captured

    def __post_init__(self) -> None:
        """Refuse sets that the tails do not fit."""
        super().__post_init__()
        for name in ("set_top_p", "min_gain", "tolerated_gap"):
            value = getattr(self, name)
            check(name, value is None, "null: sampled tails fit the captured sets only", value)

    @property
    def linear_in_normaliser(self) -> bool:
        """The weights of a step sum to 1, so it stands beside the scores with weight 1."""
        return True

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """``sum_A p (log p - log q) + (1 - m)/N sum_j c_j (log p_j - log q_j)``."""
        sampled = batch.tail
        if sampled is None:
            raise InvalidValueError(
                "sparse_kd: expected evidence with sampled tail tokens, found none; capture with "
                "rollouts.capture.tail_samples above 0 (8 is a start)"
            )
        student, own = views.student, batch.teacher_sets
        normaliser = student.loss_normaliser
        head = student.on_set - normaliser[batch.sets.step]
        tail = student.scores.at(sampled.ids, sampled.step)
        tail = tail - normaliser[sampled.step]
        loss = core.sampled_tail_kl(
            own.log_probs,
            head[batch.own],
            own.offsets,
            tail_teacher=sampled.log_probs,
            tail_student=tail,
            tail_counts=sampled.counts,
            tail_offsets=sampled.offsets,
        )
        return StepLoss(loss)
