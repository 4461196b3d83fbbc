"""An objective of one's own: the forward KL with a bonus for staying on the teacher's set.

Named in a recipe by its path, ``objective: own_objective.py:OnSetKL``; `tdistill init
own-objective` writes both. docs/objectives.md says what `views` and `batch` hold.
"""

from dataclasses import dataclass
from typing import ClassVar

from tdistill import core
from tdistill.training.objectives import Objective, StepLoss


@dataclass(frozen=True)
class OnSetKL(Objective):
    """``KL(proj_p pi* || proj_p pi) - weight log m``, m the student's mass on the set."""

    name: ClassVar[str] = "on_set_kl"
    weight: float = 1.0  # of the mass; at 1 this is the library's `kd`

    def loss(self, views, batch):
        """Per step, nats."""
        student, step = views.student, batch.sets.step
        on_set = core.project(student.on_set, batch.sets.offsets)
        kl = core.set_forward_kl(batch.sets.log_probs, on_set, batch.sets.offsets)
        log_probs = student.on_set - student.log_normaliser[step]
        log_mass = core.log_set_mass(log_probs, batch.sets.offsets)
        return StepLoss(kl - self.weight * log_mass, {"log_set_mass": log_mass})
