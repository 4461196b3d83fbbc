"""Checks of configuration values; torch-free."""

from __future__ import annotations

from tdistill.errors import InvalidValueError


def check_mass(name: str, value: float) -> None:
    """Refuse a probability mass outside (0, 1].

    Example:
        >>> check_mass("set_top_p", 1.5)
        Traceback (most recent call last):
        tdistill.errors.InvalidValueError: set_top_p: expected a mass in (0, 1], found 1.5
    """
    check(name, 0.0 < value <= 1.0, "a mass in (0, 1]", value)


def check_at_least(minimum: int, **values: int | None) -> None:
    """Refuse a number below ``minimum``; None passes.

    Example:
        >>> check_at_least(1, steps=0)
        Traceback (most recent call last):
        tdistill.errors.InvalidValueError: steps: expected at least 1, found 0
    """
    for name, value in values.items():
        check(name, value is None or value >= minimum, f"at least {minimum}", value)


def check(name: str, holds: bool, expected: str, found: object) -> None:
    """Refuse a value, saying what was expected."""
    if not holds:
        raise InvalidValueError(f"{name}: expected {expected}, found {found}")
