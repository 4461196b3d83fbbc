"""Rows of small integers as bytes, and many rows back at once.

A stream of n integers of w bits is stored in planes: w is cut into powers of two, and each part of
every integer goes to its own run of bytes (18 bits: the lower 16 as they are, the upper 2 four to
a byte). A plane is read by one look-up a byte, whatever w is. Integers that are rarely large are
stored in few bits, of which the largest pattern says that the rest follows in the next, wider
stream: patched frame of reference, with the exceptions marked in place.

Reference:
    Zukowski, Heman, Nes, Boncz, 2006, ICDE, "Super-scalar RAM-CPU cache compression".
"""

from __future__ import annotations

from functools import cache

import numpy as np

from tdistill.errors import CacheError

_PLANES = (32, 16, 8, 4, 2, 1)


def planes_of(width: int) -> list[int]:
    """The powers of two that make up a width, in the order of storing.

    Example:
        >>> planes_of(18)
        [16, 2]
    """
    return [plane for plane in _PLANES if width & plane]


class StreamWriter:
    """Collects the streams of one row.

    Example:
        >>> writer = StreamWriter()
        >>> writer.add(np.array([1, 2, 300]), 4, 16)  # 300 = 15 + 285
        >>> writer.bytes().hex(" ")
        '21 0f 1d 01'
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, values: np.ndarray, *widths: int) -> None:
        """Append integers >= 0; what does not fit a width goes on in the next one.

        Raises:
            CacheError: if one does not fit the last width.
        """
        for width in widths[:-1]:
            escape = (1 << width) - 1
            self._fixed(np.minimum(values, escape), width)
            values = values[values >= escape] - escape
        self._fixed(values, widths[-1])

    def _fixed(self, values: np.ndarray, width: int) -> None:
        values = values.astype(np.uint64)
        if len(values) and int(values.max()) >> width:
            raise CacheError(f"expected integers of {width} bits, found {int(values.max())}")
        for plane in planes_of(width):
            part = values & np.uint64((1 << plane) - 1)
            values = values >> np.uint64(plane)
            if plane >= 8:
                self._parts.append(part.astype(f"<u{plane // 8}").tobytes())
            else:
                padded = np.zeros((-(-len(part) // (8 // plane)), 8 // plane), dtype=np.uint8)
                padded.ravel()[: len(part)] = part
                shifts = plane * np.arange(8 // plane, dtype=np.uint8)
                self._parts.append((padded << shifts).sum(1).astype(np.uint8).tobytes())

    def bytes(self) -> bytes:
        """All streams so far."""
        return b"".join(self._parts)


class StreamReader:
    """Reads the streams of many rows, one stream of all rows at a time.

    Args:
        data: bytes that hold the rows.
        starts: where each row begins.
        stops: where each row ends.

    Example:
        >>> rows = np.frombuffer(bytes.fromhex("21 0f 1d 01 05"), dtype=np.uint8)
        >>> both = StreamReader(rows, np.array([0, 4]), np.array([4, 5]))
        >>> both.take(np.array([3, 1]), 4, 16).tolist()
        [1, 2, 300, 5]
        >>> both.finish()
    """

    def __init__(self, data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
        self._data, self._at, self._stops = data, starts.astype(np.int64), stops

    def take(self, counts: np.ndarray, *widths: int) -> np.ndarray:
        """The next stream of every row, rows laid end to end.

        Args:
            counts: integers of each row.
            widths: as in :meth:`StreamWriter.add`.

        Raises:
            CacheError: if a row ends before that.
        """
        values = self._fixed(counts, widths[0])
        return self.patch(values, counts, *widths) if len(widths) > 1 else values

    def patch(self, values: np.ndarray, counts: np.ndarray, *widths: int) -> np.ndarray:
        """``values``, read at the first width, with what went on in the others added."""
        escape = (1 << widths[0]) - 1
        at = np.flatnonzero(values == escape)
        values = values.astype(np.int32 if widths[-1] < 32 else np.int64)
        if len(at):
            ends = np.searchsorted(at, np.cumsum(counts))
            values[at] += self.take(np.diff(ends, prepend=0), *widths[1:])
        return values

    def finish(self) -> None:
        """Refuse rows that hold more, or less, than was read.

        Raises:
            CacheError: saying how many.
        """
        wrong = int((self._at != self._stops).sum())
        if wrong:
            raise CacheError(f"expected rows that end with their last stream, found {wrong} others")

    def _fixed(self, counts: np.ndarray, width: int) -> np.ndarray:
        first, *others = [self._plane(counts, plane) for plane in planes_of(width)]
        if not others:
            return first
        kind = np.uint16 if width <= 16 else np.int64
        values, shift = first.astype(kind), planes_of(width)[0]
        for plane, part in zip(planes_of(width)[1:], others, strict=True):
            values |= np.left_shift(part, shift, dtype=kind)
            shift += plane
        return values

    def _plane(self, counts: np.ndarray, plane: int) -> np.ndarray:
        lengths = _byte_counts(counts, plane)
        ends = self._at + lengths
        if (ends > self._stops).any():
            raise CacheError("expected rows that end with their last stream, found a shorter one")
        packed = _joined(self._data, self._at, ends)
        self._at = ends
        if plane >= 8:
            return packed.view(f"<u{plane // 8}")
        values = np.take(_table(plane), packed).view(np.uint8)
        each = 8 // plane
        if (counts % each == 0).all():
            return values
        starts = each * (np.cumsum(lengths) - lengths)
        return _joined(values, starts, starts + counts)


def _byte_counts(counts: np.ndarray, plane: int) -> np.ndarray:
    return (counts.astype(np.int64) * plane + 7) // 8


def _joined(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    pairs = zip(starts.tolist(), stops.tolist(), strict=True)
    return np.concatenate([data[:0], *(data[a:b] for a, b in pairs)])


@cache
def _table(plane: int) -> np.ndarray:
    """For each byte its parts, as one integer whose bytes they are."""
    each = 8 // plane
    parts = np.arange(256)[:, None] >> (plane * np.arange(each)) & ((1 << plane) - 1)
    return np.ascontiguousarray(parts.astype(np.uint8)).view(f"u{each}").ravel()
