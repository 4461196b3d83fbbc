"""The mathematics of method.md over padded [T, K] tensors: plain, slow, and easy to check by eye.

Nothing here uses ``tdistill``: the ragged forms are tested against it. ``real`` is true on members
and false on padding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_SCALE = 2**1100


def top_p_set(log_probs: Tensor, p: float, max_size: int | None = None) -> list[int]:
    """A_p of one row (2.1) by sorting all of it and adding probabilities exactly, as integers."""
    probs = log_probs.exp().tolist()
    log_probs_list = log_probs.tolist()
    number = np.float64 if log_probs.dtype == torch.float64 else np.float32
    members: list[int] = []
    mass = 0
    for token in sorted(range(len(probs)), key=lambda v: (-log_probs_list[v], v)):
        if log_probs_list[token] == float("-inf") or len(members) == max_size:
            break
        members.append(token)
        numerator, denominator = probs[token].as_integer_ratio()
        mass += numerator * (_SCALE // denominator)
        if p < 1 and number(mass / _SCALE) >= number(p):
            break
    return members


def pad(values: Tensor, offsets: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Rows side by side, [T, K], and where they are real."""
    rows = [values[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    width = max((row.numel() for row in rows), default=0)
    padded = [torch.cat([row, values.new_full((width - row.numel(),), fill)]) for row in rows]
    real = [torch.arange(width) < row.numel() for row in rows]
    return torch.stack(padded), torch.stack(real)


def project(scores: Tensor, real: Tensor) -> Tensor:
    """(2.3): log-probabilities renormalised over the members; minus infinity on padding."""
    return scores.masked_fill(~real, float("-inf")).log_softmax(-1)


def soft_value(q: Tensor, real: Tensor, temperature: float = 1.0) -> Tensor:
    """(3.2)."""
    return temperature * (q / temperature).masked_fill(~real, float("-inf")).logsumexp(-1)


def expectation(values: Tensor, log_policy: Tensor, real: Tensor) -> Tensor:
    """Mean of ``values`` under a policy on the members."""
    return (log_policy.exp() * values).masked_fill(~real, 0.0).sum(-1)


def next_value(value: Tensor, lengths: Tensor) -> Tensor:
    """V(s'), one response at a time; 0 after the last step."""
    pieces = value.split(lengths.tolist())
    return torch.cat([torch.cat([piece[1:], piece.new_zeros(1)]) for piece in pieces])


def discounts(lengths: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """Gamma, and 0 at the end of a finished response."""
    out: list[float] = []
    for length, finished in zip(lengths.tolist(), ended.tolist(), strict=True):
        out += [gamma] * (length - 1) + [0.0 if finished else gamma]
    return torch.tensor(out)


def chi_square_loss(
    value: Tensor, q_a: Tensor, following: Tensor, discount: Tensor, alpha: float
) -> Tensor:
    """(4.4)."""
    reward = q_a - discount * following
    return (value - q_a) + reward * reward / (4 * alpha)
