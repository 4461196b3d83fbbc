"""Other cloners whose teacher is tilted by values, as :class:`ValueTiltedKD` tilts forward KL.

Named in a recipe by their place: ``objective: tilts.py:TiltedReverseKL``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tdistill.training.objectives import BellmanDistill, ReverseKL, ValueTilt


@dataclass(frozen=True)
class TiltedReverseKL(ValueTilt, ReverseKL):
    """Reverse KL to the tilted teacher, what is off the set one more outcome."""

    name: ClassVar[str] = "tilted_reverse_kl"
    set_top_p: float | None = 0.8


@dataclass(frozen=True)
class TiltedBellman(ValueTilt, BellmanDistill):
    """IQ-Learn on the set, its linear term under the tilted teacher; one discount for both."""

    name: ClassVar[str] = "tilted_bellman"
    set_top_p: float | None = 0.8
    discount: float = 0.9
