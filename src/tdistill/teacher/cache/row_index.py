"""Where the rows of a cache are: 12 bytes a row, whatever a row holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_KEY = 8


class RowIndex:
    """Rows by the first bytes of their addresses; who asks compares the rest.

    Args:
        prefixes: the first 8 bytes of the addresses, in file order.

    Example:
        >>> index = RowIndex(np.array([7, 5, 7], dtype=np.uint64))
        >>> [found.tolist() for found in index.find([(7).to_bytes(16, "little"), bytes(16)])]
        [[0, 2], []]
    """

    def __init__(self, prefixes: np.ndarray) -> None:
        order = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[order]
        self._numbers = order.astype(np.uint32 if len(order) <= 1 << 32 else np.uint64)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it holds."""
        return self._prefixes.nbytes + self._numbers.nbytes

    def find(self, keys: Sequence[bytes]) -> list[np.ndarray]:
        """Numbers of the rows that each address may be, ascending."""
        wanted = np.array([int.from_bytes(key[:_KEY], "little") for key in keys], dtype=np.uint64)
        lows = np.searchsorted(self._prefixes, wanted, side="left")
        highs = np.searchsorted(self._prefixes, wanted, side="right")
        return [self._numbers[a:b] for a, b in zip(lows, highs, strict=True)]
