"""What the dataclasses of a recipe accept, and how it is put in words."""

from __future__ import annotations

import difflib
import functools
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tdistill.errors import InvalidValueError

TAG = "objective"  # the key that names the class of a section
_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path: "a path",
    type(None): "null",
}


class Key(NamedTuple):
    """A key of a section: what it accepts, and its default (MISSING where it must be given)."""

    kind: Any
    default: Any


@functools.cache
def keys_of(cls: type) -> Mapping[str, Key]:
    """The keys that a dataclass accepts, in order, with forward references resolved."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise InvalidValueError(
            f"{cls.__qualname__}: an annotation cannot be resolved ({error}); import its types at "
            "the top of the module, outside TYPE_CHECKING"
        ) from error
    return {f.name: Key(hints[f.name], _default(f)) for f in fields(cls) if f.init}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def options_of(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def classes_of(kind: Any) -> tuple[type, ...]:
    """The dataclasses among the members of a type."""
    return tuple(o for o in options_of(kind) if isinstance(o, type) and is_dataclass(o))


def is_list(kind: Any) -> bool:
    """Whether a type is ``list[T]`` or ``tuple[T, ...]``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    return origin is list or (origin is tuple and arguments[1:] == (...,))


def name_of(cls: type) -> str | None:
    """The ``name: ClassVar[str]`` of a class, or None."""
    return None if "name" in keys_of(cls) else getattr(cls, "name", None)


def by_name(classes: Sequence[type]) -> dict[str, type]:
    """The classes of a union by name; refuses classes that cannot be told apart."""
    named = {name: cls for cls in classes if (name := name_of(cls))}
    if len(named) < len(classes) > 1:
        names = ", ".join(cls.__qualname__ for cls in classes)
        raise InvalidValueError(
            f"a union of {names}: expected a different `name: ClassVar[str]` in each"
        )
    return named


def common_base(classes: Sequence[type]) -> type | None:
    """The dataclass that all of several classes are derived from; None where there is none."""
    if len(classes) < 2:
        return None
    shared = (b for b in classes[0].__mro__ if all(issubclass(cls, b) for cls in classes))
    return next((base for base in shared if is_dataclass(base)), None)


def nearest(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known name, or an empty string."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def type_text(kind: Any) -> str:
    """What a type accepts, in words."""
    options, classes = options_of(kind), classes_of(kind)
    words = [_words(option) for option in options if option not in classes]
    if classes:
        inside = " | ".join(by_name(classes)) if classes[1:] else ", ".join(keys_of(classes[0]))
        words.insert(0, f"a section ({inside})")
    return " or ".join(words)


def _words(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is dict:
        return f"named entries (each {type_text(arguments[1])})"
    if is_list(kind):
        return f"a list (each {type_text(arguments[0])})"
    if kind in _WORDS:
        return _WORDS[kind]
    raise InvalidValueError(
        f"{kind!r} is not a type of a recipe; use int, float, bool, str, Path, None, Literal, "
        "list[T], tuple[T, ...], dict[str, T], dataclasses and unions of these"
    )


def found_text(value: Any) -> str:
    """What a value is, in the words of YAML."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return f"a section with the keys {', '.join(map(str, value)) or '(none)'}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    written = value.isoformat() if hasattr(value, "isoformat") else repr(value)  # of a date
    text = written if len(written) <= 60 else written[:57] + "..."
    words = {str: "the string", int: "the integer", float: "the number"}
    return f"{words.get(type(value), f'the {type(value).__name__}')} {text}"
