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


class DivergenceError(TdistillError, ArithmeticError):
    """Training left the numbers: a loss, a gradient or a weight is not finite."""


class StorageError(TdistillError, OSError):
    """A file or folder cannot be written: no room, no permission, something else in its place."""
