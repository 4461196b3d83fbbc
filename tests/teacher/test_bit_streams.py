"""Streams of small integers: what is packed comes back, whatever the widths and the rows."""

from __future__ import annotations

import numpy as np
import pytest

from tdistill.errors import CacheError
from tdistill.teacher.cache.bit_streams import StreamReader, StreamWriter


def reader(rows: list[bytes]) -> StreamReader:
    """Rows laid end to end, behind bytes that are none of theirs."""
    stops = 3 + np.cumsum([len(row) for row in rows])
    data = np.frombuffer(b"\xff\xff\xff" + b"".join(rows), dtype=np.uint8)
    return StreamReader(data, stops - [len(row) for row in rows], stops)


@pytest.mark.parametrize("width", range(1, 33))
def test_every_width_comes_back(width: int):
    generator = np.random.default_rng(width)
    rows = [generator.integers(0, 1 << width, n) for n in (1, 0, 7, 8, 9, 100)]
    rows[0][0] = (1 << width) - 1
    packed = []
    for row in rows:
        writer = StreamWriter()
        writer.add(row, width)
        writer.add(row[::-1], width)
        packed.append(writer.bytes())
    assert len(packed[-1]) <= 2 * (100 * width / 8 + 3)
    counts = np.array([len(row) for row in rows])
    both = reader(packed)
    assert np.array_equal(both.take(counts, width), np.concatenate(rows))
    assert np.array_equal(both.take(counts, width), np.concatenate([row[::-1] for row in rows]))
    both.finish()


@pytest.mark.parametrize("widths", [(4, 8, 16), (8, 32), (1, 2, 3, 16), (4, 8)])
def test_rare_large_numbers_go_on_in_wider_streams(widths: tuple[int, ...]):
    generator = np.random.default_rng(0)
    most = (1 << widths[-1]) - 1 + sum((1 << w) - 1 for w in widths[:-1])
    edges = [(1 << w) + d for w in widths for d in (-2, -1, 0, 1)]
    rows = [np.array([v for v in (0, *edges, most) if v <= most]), np.array([0]), np.zeros(0)]
    rows += [generator.geometric(0.1, n).clip(max=most) for n in (1, 50, 333)]
    packed = []
    for row in rows:
        writer = StreamWriter()
        writer.add(row.astype(np.int64), *widths)
        packed.append(writer.bytes())
    both = reader(packed)
    counts = np.array([len(row) for row in rows])
    assert np.array_equal(both.take(counts, *widths), np.concatenate(rows))
    both.finish()


def test_what_does_not_fit_is_refused():
    for values, widths in (([16], (4,)), ([15 + 256], (4, 8)), ([1 << 32], (32,))):
        with pytest.raises(CacheError, match=r"expected integers of \d+ bits"):
            StreamWriter().add(np.array(values), *widths)


def test_rows_that_are_too_short_or_too_long_are_refused():
    writer = StreamWriter()
    writer.add(np.arange(9), 4)
    for wrong in (writer.bytes()[:-1], b""):
        with pytest.raises(CacheError, match="found a shorter one"):
            reader([writer.bytes(), wrong]).take(np.array([9, 9]), 4)
    longer = reader([writer.bytes(), writer.bytes() + b"\0"])
    longer.take(np.array([9, 9]), 4)
    with pytest.raises(CacheError, match="found 1 others"):
        longer.finish()
