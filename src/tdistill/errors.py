"""Errors of the library: each says what was expected, what was found, where, and what to do."""

from __future__ import annotations


class TdistillError(Exception):
    """Base class: ``except TdistillError`` catches everything the library raises on purpose."""


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


def printable(text: object, most: int = 100) -> str:
    """Text of a stranger's as it can be shown in a line: nothing that a terminal would act on.

    Example:
        >>> printable("a\\x1b[2J\\nb")
        'a?[2J?b'
    """
    shown = "".join(c if c.isprintable() else "?" for c in str(text)[: most + 1])
    return shown if len(shown) <= most else f"{shown[:most]}..."


def one_line(error: BaseException) -> str:
    """What an error of a library says, in one line that is not long.

    Example:
        >>> one_line(ValueError("no file named\\n  x.safetensors"))
        'no file named x.safetensors'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LookupError):  # whose text is only the key
        text = f"{type(error).__name__} {text}"
    return printable(text, 300)
