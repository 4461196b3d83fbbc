"""GKD: a divergence of the cloning family, partly in the student's own states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tdistill.training.objectives.base import Card
from tdistill.training.objectives.cloning import JSD

__all__ = ["GKD"]


@dataclass(frozen=True)
class GKD(JSD):
    """Generalised knowledge distillation: the generalised JSD, partly in the student's own states.

    Nothing is differentiated through the sampling. The paper names no one best beta and runs
    student shares (its lambda) of 0, 0.5 and 1 from an SFT student; 0.5 for both is what the common
    implementation (TRL) defaults to. There a coin decides for each batch, here each batch is
    mixed. Support ``vocabulary`` is the paper's divergence; without a student share and with beta
    0 this is :class:`KD`.
    """

    name: ClassVar[str] = "gkd"
    card: ClassVar[Card] = Card(
        family="online",
        minimises="the generalised JSD on a mixture of teacher's and student's responses",
        optimum=JSD.card.optimum,
        bias=JSD.card.bias,
        data="responses of teacher and student, with the teacher's sets; or the live teacher",
        cost="as jsd, and sampling and scoring the student's responses",
        reference="Agarwal et al., 2023, arXiv 2306.13649",
    )
    student_share: float = 0.5  # of each batch: the student's own responses (lambda)
