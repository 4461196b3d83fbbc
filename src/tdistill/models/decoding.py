"""How tokens are chosen from logits; torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from tdistill.checks import check, check_mass


@dataclass(frozen=True)
class Decoding:
    """A way to choose tokens.

    Attributes:
        greedy: take the most probable token (then the other fields do not matter).
        temperature: divides the logits.
        sampling_top_p: nucleus mass after the temperature; 1 samples from everything.
    """

    greedy: bool = False
    temperature: float = 1.0
    sampling_top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_mass("sampling_top_p", self.sampling_top_p)
        expected = "a value above 0 (or greedy: true)"
        check("temperature", self.temperature > 0.0, expected, self.temperature)
