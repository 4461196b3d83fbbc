"""Streams of small integers: what is packed comes back, whatever the widths and the rows."""

from __future__ import annotations

import numpy as np
import pytest

from tdistill.errors import CacheError
from tdistill.teacher.bits import Packer, Unpacker


def unpacker(rows: list[bytes]) -> Unpacker:
    """Rows laid end to end, behind bytes that are none of theirs."""
    stops = 3 + np.cumsum([len(row) for row in rows])
    data = np.frombuffer(b"\xff\xff\xff" + b"".join(rows), dtype=np.uint8)
    return Unpacker(data, stops - [len(row) for row in rows], stops)


@pytest.mark.parametrize("width", range(1, 33))
def test_every_width_comes_back(width: int):
    generator = np.random.default_rng(width)
    rows = [generator.integers(0, 1 << width, n) for n in (1, 0, 7, 8, 9, 100)]
    rows[0][0] = (1 << width) - 1
    packed = []
    for row in rows:
        packer = Packer()
        packer.add(row, width)
        packer.add(row[::-1], width)
        packed.append(packer.bytes())
    assert len(packed[-1]) <= 2 * (100 * width / 8 + 3)
    counts = np.array([len(row) for row in rows])
    both = unpacker(packed)
    assert np.array_equal(both.take(counts, width), np.concatenate(rows))
    assert np.array_equal(both.take(counts, width), np.concatenate([row[::-1] for row in rows]))
    both.finish()
    second = unpacker(packed)
    second.skip(counts, width)
    assert np.array_equal(second.take(counts, width), np.concatenate([row[::-1] for row in rows]))


@pytest.mark.parametrize("widths", [(4, 8, 16), (8, 32), (1, 2, 3, 16), (4, 8)])
def test_rare_large_numbers_go_on_in_wider_streams(widths: tuple[int, ...]):
    generator = np.random.default_rng(0)
    most = (1 << widths[-1]) - 1 + sum((1 << w) - 1 for w in widths[:-1])
    edges = [(1 << w) + d for w in widths for d in (-2, -1, 0, 1)]
    rows = [np.array([v for v in (0, *edges, most) if v <= most]), np.array([0]), np.zeros(0)]
    rows += [generator.geometric(0.1, n).clip(max=most) for n in (1, 50, 333)]
    packed = []
    for row in rows:
        packer = Packer()
        packer.add(row.astype(np.int64), *widths)
        packed.append(packer.bytes())
    both = unpacker(packed)
    counts = np.array([len(row) for row in rows])
    assert np.array_equal(both.take(counts, *widths), np.concatenate(rows))
    both.finish()


def test_what_does_not_fit_is_refused():
    for values, widths in (([16], (4,)), ([15 + 256], (4, 8)), ([1 << 32], (32,))):
        with pytest.raises(CacheError, match=r"expected integers of \d+ bits"):
            Packer().add(np.array(values), *widths)


def test_rows_that_are_too_short_or_too_long_are_refused():
    packer = Packer()
    packer.add(np.arange(9), 4)
    for wrong in (packer.bytes()[:-1], b""):
        with pytest.raises(CacheError, match="found a shorter one"):
            unpacker([packer.bytes(), wrong]).take(np.array([9, 9]), 4)
    longer = unpacker([packer.bytes(), packer.bytes() + b"\0"])
    longer.take(np.array([9, 9]), 4)
    with pytest.raises(CacheError, match="found 1 others"):
        longer.finish()
