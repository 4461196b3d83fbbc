from __future__ import annotations

import pytest
from benchmarks.speed.measure import Spread, paired, peak_bytes, ratio, resident_bytes, spread_of


def test_a_spread_is_the_quartiles_or_of_few_values_the_extremes():
    assert spread_of([5.0, 1.0, 3.0]) == Spread(3.0, 1.0, 5.0)
    assert spread_of([1.0, 2.0, 3.0, 4.0, 100.0]) == Spread(3.0, 2.0, 4.0)


def test_ratios_are_of_pairs_and_not_of_medians():
    slow, fast = [10.0, 200.0, 33.0], [1.0, 10.0, 3.0]
    assert ratio(slow, fast) == Spread(11.0, 10.0, 20.0)
    with pytest.raises(ValueError):
        ratio([1.0], [1.0, 2.0])


def test_methods_take_turns_and_every_second_round_goes_backwards():
    order: list[str] = []

    def method(name: str):
        return lambda: order.append(name) or float(len(order))

    seconds = paired({"a": method("a"), "b": method("b")}, 3, warm_up=1)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert seconds == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}


def test_memory_of_this_process():
    before = resident_bytes()
    held = bytearray(200 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    assert resident_bytes() - before > 150 << 20
    assert peak_bytes() > resident_bytes() - (16 << 20)  # the system counts the peak less exactly
    peak = peak_bytes()
    del held
    assert resident_bytes() - before < 50 << 20
    assert peak_bytes() >= peak
