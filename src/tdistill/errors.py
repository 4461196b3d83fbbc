"""Errors of the library: each says what was expected, what was found, where, and what to do."""

from __future__ import annotations

import re

# Controls but for tab and line feed, and halves of pairs; marks of direction, separators of lines.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_ACTING = re.compile(f"[{_CONTROLS}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text that cannot act where it is shown: control characters are written out.

    Names and texts come from data and models of strangers; an escape sequence among them would move
    a terminal's cursor or change its title, and an override would turn the direction of a line.

    Example:
        >>> printable("a\\x1b[31mb\\n")
        'a\\\\x1b[31mb\\n'
    """
    return _ACTING.sub(_written_out, text)


def without_controls(page: str) -> str:
    """A page or a file whose control characters are written out; marks of direction stay.

    Those belong to texts in many scripts, and each text has an element of its own there.

    Example:
        >>> without_controls("a\\x1b[31mb\\r\\n\\u200f")
        'a\\\\x1b[31mb\\n\\u200f'
    """
    return _CONTROL.sub(_written_out, page.replace("\r\n", "\n"))


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def excerpt(text: object, most: int = 100) -> str:
    """A name of a stranger's, as it can stand in a line: short, nothing that a terminal acts on.

    Example:
        >>> excerpt("a\\n\\x1b[2Jb"), excerpt("abc", 2)
        ('a\\\\n\\\\x1b[2Jb', 'ab...')
    """
    shown = printable(str(text)[: most + 1]).replace("\n", "\\n").replace("\t", "\\t")
    return shown if len(str(text)) <= most else f"{shown[:most]}..."


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


class ServerError(ModelError):
    """A teacher that is asked through an engine does not answer, or answers wrongly."""


class DivergenceError(TdistillError, ArithmeticError):
    """Training left the numbers: a loss, a gradient or a weight is not finite."""


class StorageError(TdistillError, OSError):
    """A file or folder cannot be written: no room, no permission, something else in its place."""


def one_line(error: BaseException) -> str:
    """What an error of a library says, in one line that is not long.

    Example:
        >>> one_line(ValueError("no file named\\n  x.safetensors"))
        'no file named x.safetensors'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LookupError):  # whose text is only the key
        text = f"{type(error).__name__} {text}"
    return excerpt(text, 300)
