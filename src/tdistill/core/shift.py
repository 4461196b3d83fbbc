"""How logits become Q: the shift and clip conventions of method.md, section 4.

Logits are Q only up to a constant per state, and chi-square is not shift invariant, so the constant
is a named choice.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core.segments import segment_max

Shift = Literal["raw", "set-max", "vocabulary-max", "normalised"]


def set_max_shift(scores: Float[Tensor, " M"], offsets: Int[Tensor, " R"]) -> Float[Tensor, " R-1"]:
    """The constant that pins the largest Q of the set to 0.

    Example:
        >>> import torch
        >>> set_max_shift(torch.tensor([1.0, 4.0]), torch.tensor([0, 2])).tolist()
        [4.0]
    """
    return segment_max(scores, offsets)


def clip_q(q: Float[Tensor, " *M"], *, lowest: float | None) -> Float[Tensor, " *M"]:
    """Q bounded from below (the paper: -10); ``None`` leaves it. The gradient is 0 below the bound.

    Example:
        >>> import torch
        >>> clip_q(torch.tensor([-30.0, -1.0]), lowest=-10.0).tolist()
        [-10.0, -1.0]
    """
    return q if lowest is None else q.clamp(min=lowest)
