"""The numbers that evidence is rounded to: few enough to store, close enough not to matter.

A log-probability becomes one of 65,536 levels. Steps are a 256th of the distance to 0, at least
2^-13 and at most 2^-7 nats: likely tokens, which make up the value of a state, keep a relative
error of 1/512, and no token is off by more than 1/256 nats (0.0039). Levels ascend as
log-probabilities fall, so within a descending row their differences are small and not negative.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_PER_OCTAVE = 256
_BOUNDS = tuple(2.0**n for n in range(-4, 2))  # below each, steps are half as long
_FINEST = 2.0**-13
_LEVELS = 1 << 16
NORMALISER_STEP = 2.0**-9
_LARGEST_NORMALISER = 8192.0  # its multiples of the step are exact in float32


@cache
def level_table() -> np.ndarray:
    """The log-probability of every level, float32, from 0 downwards.

    Example:
        >>> table = level_table()
        >>> len(table), float(table[0]), float(table[1792]), float(table[-1])
        (65536, 0.0, -2.0, -499.9921875)
    """
    levels = np.arange(_LEVELS)
    octave = np.clip(levels // _PER_OCTAVE - 1, 0, len(_BOUNDS))
    steps = levels - _PER_OCTAVE * octave
    return (0.0 - steps * (_FINEST * 2.0**octave)).astype(np.float32)


def levels_of(log_probs: np.ndarray) -> np.ndarray:
    """The levels of rounded log-probabilities; of others, the nearest ones.

    Example:
        >>> levels_of(np.array([0.0, -2.0, -20.0], dtype=np.float32)).tolist()
        [0, 1792, 4096]
    """
    distance = np.fmax(-log_probs.astype(np.float64), 0.0)  # not a number: 0
    distance = np.fmin(distance, -float(level_table()[-1]))
    octave = np.searchsorted(np.asarray(_BOUNDS), distance, side="right")
    return np.rint(distance / (_FINEST * 2.0**octave)).astype(np.int64) + _PER_OCTAVE * octave


def round_log_probs(log_probs: Float[Tensor, " *M"]) -> Float[Tensor, " *M"]:
    """Log-probabilities as stored: an error of at most 0.004 nats and, above -2, of 1/512 of them.

    Below 2^-4 nats from 0 the error is at most 2^-14; below -499.99 all become that.

    Example:
        >>> round_log_probs(torch.tensor([-9.123456, -0.0101])).tolist()
        [-9.125, -0.0101318359375]
    """
    distance = (-log_probs.float()).clamp(0.0, -float(level_table()[-1]))
    bounds, lengths = _octaves(distance.device)
    step = lengths[torch.bucketize(distance, bounds, right=True)]
    return 0.0 - (distance / step).round() * step


@cache
def _octaves(device: torch.device) -> tuple[Tensor, Tensor]:
    """Bounds of the octaves and the steps within them; made once a device."""
    with torch.inference_mode(False):  # kept, and used where there are gradients, too
        bounds = torch.tensor(_BOUNDS, device=device)
        return bounds, torch.tensor([_FINEST, *(2.0**-8 * b for b in _BOUNDS)], device=device)


def round_normaliser(log_normaliser: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Log-normalisers as stored: multiples of 1/512 nats, an error of at most 0.001.

    Example:
        >>> round_normaliser(torch.tensor([21.3456])).tolist()
        [21.345703125]
    """
    bounded = log_normaliser.float().clamp(-_LARGEST_NORMALISER, _LARGEST_NORMALISER)
    return (bounded / NORMALISER_STEP).round() * NORMALISER_STEP + 0.0
