from __future__ import annotations

import subprocess
import sys

import pytest
from benchmarks.speed.measure import Spread, paired, ratio, spread_of


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
    code = (
        "from benchmarks.speed.measure import peak_bytes, resident_bytes\n"
        "before, held = peak_bytes(), bytearray(200 << 20)\n"
        "held[:: 1 << 12] = b'x' * len(held[:: 1 << 12])\n"
        "print(peak_bytes() - before > 100 << 20, resident_bytes() > 200 << 20)"
    )
    # In a process of its own: the peak of this one may be higher than what it holds now.
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "True True\n"
