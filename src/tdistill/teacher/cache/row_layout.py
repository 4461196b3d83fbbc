"""How a response and its evidence become bytes: the streams of a row, and their widths.

Each row holds these streams, one after the other, V being the size of the vocabulary and ``w/x``
meaning w bits, or x more where w do not suffice (see :mod:`tdistill.teacher.cache.bit_streams`):

- the tokens of the prompt (absent where it is that of the row before) and of the response;
- a step: the size of its set less 1 (8/16/32), the log-normaliser in steps of 1/512 nats (16/32;
  absent where the teacher gives none), the level of the likeliest member without its lowest 4 bits
  (8/16);
- a member: its token, and how many levels it is below the member before (4/8/16), or
  the lowest 4 bits of its level where it is the first;
- a step whose action is not in its set: the level of that (12/16); the others have it in the set;
- with sampled tails, a step: their number (8); a tail token: token (``log2 V``), level (12/16),
  how often it was drawn (4/8).

A token takes ``log2 V`` bits up to 16. Where it would take more, the shard has a table of its most
frequent tokens, and a token is its place there (14), or 14 bits and itself.

Levels are those of :mod:`tdistill.teacher.cache.rounding`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tdistill.core import TopPSets
from tdistill.teacher.cache.rounding import levels_of

SET_SIZE, NORMALISER, FIRST_LEVEL = (8, 16, 32), (16, 32), (8, 16)
LEVEL_DELTA, OUTSIDE_LEVEL = (4, 8, 16), (12, 16)
TAIL_SIZE, TAIL_LEVEL, TAIL_COUNT = (8,), (12, 16), (4, 8)
LOWEST = (1 << LEVEL_DELTA[0]) - 1
PLACE = 14
PLACES = (1 << PLACE) - 1


def token_bits(vocabulary_size: int) -> int:
    """Bits of a token.

    Example:
        >>> [token_bits(v) for v in (2, 49_152, 65_536, 65_537, 151_936)]
        [1, 16, 16, 17, 18]
    """
    return max(1, (vocabulary_size - 1).bit_length())


def token_widths(vocabulary_size: int) -> tuple[int, ...]:
    """Widths of a token's stream, the first that of a place in the table where there is one."""
    bits = token_bits(vocabulary_size)
    return (bits,) if bits <= 16 else (PLACE, bits)


def frequent_tokens(tokens: np.ndarray) -> np.ndarray:
    """The tokens worth a place in the table: the most frequent that occur twice at least.

    Example:
        >>> frequent_tokens(np.array([7, 5, 5, 7, 7, 9])).tolist()
        [7, 5]
    """
    found, counts = np.unique(tokens, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:PLACES]
    return found[order][counts[order] > 1]


def taken_members(
    actions: np.ndarray, sizes: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Steps whose action is a member of their set, and which member it is."""
    member = np.flatnonzero(ids == np.repeat(actions, sizes))
    return np.searchsorted(np.cumsum(sizes), member, side="right"), member


def member_bits(sets: TopPSets, escaped: np.ndarray, vocabulary_size: int) -> np.ndarray:
    """What each member of sets takes in a shard.

    Args:
        sets: as stored.
        escaped: whether each token has no place in the table of the shard.
        vocabulary_size: of the teacher.

    Example:
        >>> import torch
        >>> sets = TopPSets(torch.tensor([7, 9]), torch.tensor([-0.5, -2.0]), torch.tensor([0, 2]))
        >>> member_bits(sets, np.array([False, True]), 151_936).tolist()  # 14 + 4, 14 + 18 + 28
        [18, 60]
    """
    width, *wider = token_widths(vocabulary_size)
    deltas = np.diff(levels_of(sets.log_probs.numpy()), prepend=0)
    deltas[sets.offsets[:-1].numpy()] = 0
    bits = width + sum(wider) * escaped + LEVEL_DELTA[0]
    for narrower, more in pairwise(LEVEL_DELTA):
        full = (1 << narrower) - 1
        bits = bits + more * (deltas >= full)
        deltas = deltas - full
    return bits
