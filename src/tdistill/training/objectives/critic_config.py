"""Settings of a critic; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tdistill.checks import check, check_at_least

__all__ = ["CriticConfig"]


@dataclass(frozen=True)
class CriticConfig:
    """A critic g(s,a) of the set members: the cost to go that a temporal difference learns.

    It reads the student's last hidden state and is 0 everywhere at the start. ``map``, ``low-rank``
    and ``mlp`` end in the frozen token embeddings, so that tokens share what is learned of them;
    ``rows`` has a vector of its own for each token.
    """

    form: Literal["map", "low-rank", "mlp", "rows"] = "map"
    rank: int = 32  # inner width of low-rank and mlp
    learning_rate: float = 4.0  # about the nats by which one update moves g, were all rows alike
    price_rate: float = 0.02  # nats by which one update can move the price of a token
    averaged: float | None = None  # decay of an averaged copy that gives the targets; null: none
    into_student: float = 0.0  # weight of the critic's gradient in the student's hidden states

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(1, rank=self.rank)
        check("learning_rate", self.learning_rate > 0.0, "above 0", self.learning_rate)
        check("price_rate", self.price_rate > 0.0, "above 0", self.price_rate)
        decay = self.averaged
        check("averaged", decay is None or 0.0 <= decay < 1.0, "in [0, 1) or null", decay)
        check("into_student", self.into_student >= 0.0, "at least 0", self.into_student)
