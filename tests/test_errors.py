"""Errors show texts of strangers, which must not act where they are shown."""

from __future__ import annotations

import pytest

from tdistill.errors import DataError, TdistillError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\u00e9 \u4e2d \U0001f600\n\ttab", "caf\u00e9 \u4e2d \U0001f600\n\ttab"),
        ("\x1b[2J\x07\x9b1m\x7f", "\\x1b[2J\\x07\\x9b1m\\x7f"),
        ("a\rb\u2028c", "a\\rb\\u2028c"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str):
    assert printable(text) == shown
    assert str(DataError(text)) == shown


def test_an_error_is_what_it_was_raised_with():
    with pytest.raises(TdistillError, match="expected a, found b") as caught:
        raise DataError("expected a, found b")
    assert caught.value.args == ("expected a, found b",)
