"""Errors of the library: each says what was expected, what was found, where, and what to do."""

from __future__ import annotations

import unicodedata

_SHOWN_AS_IT_IS = "\n\t"
_ACTING = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of pairs, separators of lines
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> str:
    """A text that cannot act where it is shown: control characters are written out.

    Names and texts come from data and models of strangers; an escape sequence among them would move
    a terminal's cursor or change its title, and an override would turn the direction of a line.

    Example:
        >>> printable("a\\x1b[31mb\\n")
        'a\\\\x1b[31mb\\n'
    """
    return "".join(
        character if character in _SHOWN_AS_IT_IS or not _acts(character) else _escaped(character)
        for character in text
    )


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _ACTING or character in _TURNING


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


class TdistillError(Exception):
    """Base class: ``except TdistillError`` catches everything the library raises on purpose."""

    def __str__(self) -> str:
        return printable(super().__str__())


class InvalidValueError(TdistillError, ValueError):
    """An argument, a tensor or a recipe field has a value that cannot be used."""


class RecipeError(InvalidValueError):
    """A recipe has an unknown key, a wrong type or an impossible combination."""


class DataError(InvalidValueError):
    """Training or evaluation data cannot be read without guessing."""


class CacheError(TdistillError, RuntimeError):
    """A teacher cache is damaged, of another format, or belongs to another teacher."""


class ModelError(TdistillError, RuntimeError):
    """A model or tokenizer cannot be used the way it was asked to be."""
