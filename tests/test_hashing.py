"""Keys of work: equal settings share one, different settings never do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tdistill.errors import InvalidValueError
from tdistill.hashing import file_sha256, key_of


@dataclass(frozen=True)
class Inner:
    """A setting in a setting."""

    value: Any = 1
    note: str = field(default="", compare=False)


@dataclass(frozen=True)
class Other:
    """Another class with the fields of the first."""

    value: Any = 1


@dataclass(frozen=True)
class Outer:
    """Settings."""

    inner: Any = Inner()
    rate: float = 0.5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (0.0, -0.0),
        ((1, 2), [1, 2]),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}),
        (Outer(), Outer(rate=0.5)),
        (Inner(note="a"), Inner(note="b")),  # a field that does not compare
        (Outer(Inner([1])), Outer(Inner((1.0,)))),
        (Path("a/b"), "a/b"),
        (math.inf, float("inf")),
        (1e300, 10.0**300),
    ],
)
def test_equal_values_share_a_key(one: Any, other: Any):
    assert key_of(one) == key_of(other)
    assert key_of({"x": [one]}) == key_of({"x": [other]})


DIFFERENT: list[Any] = [
    None,
    True,
    False,
    1,
    0,
    1.5,
    math.nan,
    math.inf,
    "",
    "1",
    "true",
    "null",
    [],
    {},
    [1],
    [[1]],
    ["list", 1],
    [1, 2],
    ["1", 2],
    {"a": 1},
    [["a", 1]],
    ["mapping", ["a", 1]],
    {"a": [1]},
    {"a": None},
    {1: "a"},
    {"1": "a"},
    Inner(),
    Other(),
    {"value": 1},
    Inner(Inner()),
    Inner(Other()),
    Outer(),
    Outer(Other()),
    Outer(rate=0.25),
    Outer(None),
    f"{Inner.__module__}.Inner",
    [f"{Inner.__module__}.Inner", ["value", 1]],
]


def test_different_values_never_share_a_key():
    for one, other in combinations(DIFFERENT, 2):
        assert key_of(one) != key_of(other), (one, other)
    assert len({key_of("a", "b"), key_of("ab"), key_of("b", "a"), key_of(["a", "b"])}) == 4


@pytest.mark.parametrize("value", [object(), {1, 2}, b"text", Inner, len, 1j])
def test_what_is_no_plain_value_is_refused(value: Any):
    with pytest.raises(InvalidValueError, match=r"expected plain values .* found"):
        key_of({"x": [value]})


def test_a_key_is_the_same_in_every_process():
    assert key_of("a", 1, Path("b"), {"c": [0.1]}) == "7685cba8e1765422"


def test_the_checksum_of_a_file_is_that_of_its_bytes(tmp_path: Path):
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert file_sha256(file) == digest
