"""Another cloner whose teacher is tilted by values, as `value_tilted_kd` tilts forward KL.

Named in a recipe by its place: ``objective: tilts.py:TiltedReverseKL``. A cloner that has fields of
the tilt's names for something else (``beta`` of JSD, ``centre`` of Bellman Distill) cannot be mixed
in like this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tdistill.training.objectives import ReverseKL, ValueTilt


@dataclass(frozen=True)
class TiltedReverseKL(ValueTilt, ReverseKL):
    """Reverse KL to the tilted teacher, what is off the set one more outcome."""

    name: ClassVar[str] = "tilted_reverse_kl"
    set_top_p: float | None = 0.8
