"""Tokens sampled off the captured sets: what stands for the teacher's mass there, without bias."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core import Ragged


@dataclass(frozen=True, eq=False)
class Tail(Ragged):
    """Distinct tokens drawn with replacement from the teacher's mass off the set, per step.

    Attributes:
        ids: tokens, each row in ascending order.
        log_probs: the teacher's log-probabilities over the full vocabulary, nats.
        counts: how often each was drawn; they add up to the number of draws in each row.
        offsets: row t is ``[offsets[t]:offsets[t + 1]]``; empty where the set holds all the mass.
    """

    ids: Int[Tensor, " J"]
    log_probs: Float[Tensor, " J"]
    counts: Int[Tensor, " J"]
    offsets: Int[Tensor, " R"]
