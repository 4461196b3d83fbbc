"""From dataclasses back to plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from tdistill.errors import InvalidValueError
from tdistill.strict.imported import import_path_of
from tdistill.strict.kinds import TAG, found_text, keys_of, name_of


def dump(instance: Any) -> dict[str, Any]:
    """The nested dictionary that `structure` turns back into an equal instance of a dataclass.

    Its values are those that YAML and JSON can write; a class with a name gets its tag.

    Raises:
        InvalidValueError: ``instance`` is no dataclass or holds a value of another type.
    """
    if not is_dataclass(instance):
        found = found_text(instance)
        raise InvalidValueError(f"dump: expected a dataclass instance, found {found}")
    return plain(instance)


def plain(value: Any) -> Any:
    """A value of a field as `dump` writes it."""
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        head = {TAG: import_path_of(cls) or name_of(cls)} if name_of(cls) else {}
        return head | {name: plain(getattr(value, name)) for name in keys_of(cls)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InvalidValueError(f"dump: expected a value of a recipe, found {found_text(value)}")
