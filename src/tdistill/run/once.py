"""Methods that do their work at the first call."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

_Self = TypeVar("_Self")
_Made = TypeVar("_Made")


def once(method: Callable[[_Self], _Made]) -> Callable[[_Self], _Made]:
    """Let a method do its work at the first call; later calls give what it made."""
    name = f"_{method.__name__}"

    @wraps(method)
    def made(self: _Self) -> _Made:
        if name not in vars(self):
            setattr(self, name, method(self))
        return getattr(self, name)

    return made
