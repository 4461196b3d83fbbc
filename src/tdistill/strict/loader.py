"""From nested mappings to typed dataclasses and back, with every problem in one error."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tdistill.errors import InvalidValueError, RecipeError
from tdistill.strict.imported import import_class, import_path_of, is_import_path
from tdistill.strict.kinds import (
    TAG,
    by_name,
    classes_of,
    common_base,
    found_text,
    is_list,
    keys_of,
    name_of,
    nearest,
    options_of,
    type_text,
)

T = TypeVar("T")
BAD: Any = object()  # stands for a value whose problem is already recorded
# YAML 1.1 reads 5e-6 (no point, or no sign of the exponent) as a string.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Typed:
    """A value from the command line: as YAML reads it, and as it was typed (None: a flag)."""

    value: Any
    text: str | None


class Patch(dict[str, Any]):
    """A section that the document lacks: what the command line sets over its field's default."""


def load(cls: type[T], mapping: Mapping[str, Any] | None, *, where: str = "recipe.yaml") -> T:
    """An instance of a dataclass from a nested mapping, or a refusal with every reason.

    Classes may check themselves in ``__post_init__`` by raising `InvalidValueError`; such a check
    runs once everything inside the section is right, and its text gets the section's path.

    Args:
        cls: the dataclass.
        mapping: keys and values as YAML or `override` gives them; None is an empty document.
        where: name of the document, for the text of errors.

    Returns:
        The instance; ints given for floats are floats, lists given for tuples are tuples.

    Raises:
        RecipeError: all unknown and missing keys and all wrong values, each with its dotted path
            (after ``--`` where it was typed), what was expected and found, and the nearest name.
        InvalidValueError: ``cls`` itself has a type that cannot be loaded.
    """
    reader = _Reader()
    instance = reader.read(cls, mapping, "")
    refuse(reader.problems, where)
    return instance


def dump(instance: Any) -> dict[str, Any]:
    """The nested dictionary that `load` turns back into an equal instance.

    Args:
        instance: a dataclass instance.

    Returns:
        A new dictionary of dictionaries, lists, strings, numbers, booleans and None, as YAML and
        JSON can write them; a class with a name gets its tag.

    Raises:
        InvalidValueError: ``instance`` is no dataclass or holds a value of another type.
    """
    if not is_dataclass(instance) or isinstance(instance, type):
        found = found_text(instance)
        raise InvalidValueError(f"dump: expected a dataclass instance, found {found}")
    return _plain(instance)


def refuse(problems: Sequence[str], where: str) -> None:
    """Raise one error with all problems, if there are any."""
    if len(problems) == 1:
        raise RecipeError(f"{where}: {problems[0]}")
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise RecipeError(f"{where} has {len(problems)} problems:{lines}")


class _Reader:
    """Turns values into instances and records every problem on the way."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(
        self, kind: Any, value: Any, path: str, default: Any = None, label: str | None = None
    ) -> Any:
        """The value as ``kind``; ``label`` is the key of a dictionary's entry."""
        if isinstance(value, Typed):
            return self._typed(kind, value, path, label)
        if isinstance(value, Patch):
            value = _patched(default, value)
        options, classes = options_of(kind), classes_of(kind)
        if value is None and type(None) in options:
            return None
        if classes and (value is None or isinstance(value, Mapping)):
            return self._section(classes, value or {}, path, label)
        others = [o for o in options if o not in classes and o is not type(None)]
        # The exact type first: 3 stays an integer in `float | int`.
        for option in sorted(others, key=lambda option: option is not type(value)):
            attempt = _Reader()
            result = attempt._single(option, value, path)
            if not attempt.problems and result is not BAD:
                return result
            if attempt.problems and len(others) == 1:
                self.problems += attempt.problems
                return BAD
        return self._mismatch(kind, value, path)

    def _fail(self, path: str, text: str) -> Any:
        self.problems.append(f"{path}: {text}" if path else text)
        return BAD

    def _typed(self, kind: Any, typed: Typed, path: str, label: str | None) -> Any:
        """Read as YAML, else as it stands where only that is what the field takes."""
        first = _Reader()
        result = first.read(kind, typed.value, f"--{path}", label=label)
        if not first.problems:
            return result
        if typed.text is None:
            return self._fail(f"--{path}", f"expected {type_text(kind)} after it, found nothing")
        as_text = _Reader()
        result = as_text.read(kind, typed.text, path, label=label)
        if not as_text.problems:
            return result
        self.problems += first.problems
        return BAD

    def _single(self, kind: Any, value: Any, path: str) -> Any:
        """The value as a type that is no union; problems are only of what is inside the value."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if is_list(kind) and isinstance(value, (list, tuple)):
            items = enumerate(value)
            return (origin or list)(
                [self.read(arguments[0], item, f"{path}[{i}]") for i, item in items]
            )
        if origin is dict and isinstance(value, Mapping):
            return self._entries(arguments[1], value, path)
        if origin is Literal:
            same = (c for c in arguments if type(c) is type(value) and c == value)
            return next(same, BAD)
        return _scalar(kind, value)

    def _entries(self, kind: Any, value: Mapping[Any, Any], path: str) -> dict[str, Any]:
        entries = {}
        for key, item in value.items():
            if isinstance(key, str):
                entries[key] = self.read(kind, item, _join(path, key), label=key)
            else:
                text = f"expected a string as key, found {found_text(key)}; put it in quotes"
                self._fail(_join(path, key), text)
        return entries

    def _section(
        self, classes: Sequence[type], mapping: Mapping[Any, Any], path: str, label: str | None
    ) -> Any:
        cls = self._class(classes, mapping, path, label)
        if cls is BAD:
            return BAD
        before = len(self.problems)
        self._refuse_unknown(cls, mapping, path)
        values = {}
        for name, key in keys_of(cls).items():
            default = key.default()
            if name in mapping:
                values[name] = self.read(key.kind, mapping[name], _join(path, name), default)
            elif default is MISSING:
                self._fail(_join(path, name), f"missing; expected {type_text(key.kind)}")
        if len(self.problems) > before:
            return BAD
        try:
            return cls(**values)
        except InvalidValueError as error:
            return self._fail(path, str(error))

    def _refuse_unknown(self, cls: type, mapping: Mapping[Any, Any], path: str) -> None:
        known = [*keys_of(cls), *([TAG] if name_of(cls) else [])]
        for key, value in mapping.items():
            if key not in known:
                cure = f"{nearest(key, known)} (keys here: {', '.join(known)})"
                self._fail(_join(path, key, value), f"unknown key{cure}")

    def _class(
        self, classes: Sequence[type], mapping: Mapping[Any, Any], path: str, label: str | None
    ) -> Any:
        """The class that a section is of, by its tag or the name of its entry."""
        known, base = by_name(classes), common_base(classes)
        name, where = mapping.get(TAG, label), _join(path, TAG, mapping.get(TAG))
        name = name.value if isinstance(name, Typed) else name
        if len(classes) == 1 and (TAG not in mapping or not known):
            return classes[0]
        if isinstance(name, str) and name in known:
            return known[name]
        if base is not None and is_import_path(name):
            try:
                return import_class(name, base)
            except InvalidValueError as error:
                return self._fail(where, str(error))
        names = " | ".join([*known, *([] if base is None else ["FILE.py:CLASS"])])
        if TAG in mapping:
            text = f"expected {names}, found {found_text(name)}{nearest(name, known)}"
        else:
            text = f"missing; expected {names}"
            if label is not None:
                text += f" here or as the name of the entry{nearest(label, known)}"
        return self._fail(where, text)

    def _mismatch(self, kind: Any, value: Any, path: str) -> Any:
        literals = [o for o in options_of(kind) if typing.get_origin(o) is Literal]
        choices = [str(choice) for o in literals for choice in typing.get_args(o)]
        cure = nearest(value, choices) if isinstance(value, str) else ""
        scalar = isinstance(value, (int, float)) or type(value).__name__ in ("date", "datetime")
        if scalar and (choices or {str, Path} & set(options_of(kind))):
            cure = "; put it in quotes if it is meant as text"
        return self._fail(path, f"expected {type_text(kind)}, found {found_text(value)}{cure}")


def _scalar(kind: Any, value: Any) -> Any:
    if kind is float:
        return _number(value)
    if kind is Path:
        return Path(value) if isinstance(value, (str, Path)) and value else BAD
    return value if type(value) is kind else BAD  # so that true is no integer


def _number(value: Any) -> Any:
    exponent = isinstance(value, str) and _EXPONENT.fullmatch(value)
    if type(value) not in (int, float) and not exponent:
        return BAD
    try:
        number = float(value)
    except OverflowError:
        return BAD
    return BAD if math.isnan(number) else number


def _patched(default: Any, patch: Patch) -> dict[str, Any]:
    """A default, or nothing, with what the command line sets of it."""
    section = is_dataclass(default) or isinstance(default, Mapping)
    result = _plain(default) if section else {}
    for key, value in patch.items():
        inside = isinstance(value, Patch) and key in result
        result[key] = _patched(result[key], value) if inside else value
    return result


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        head = {TAG: import_path_of(cls) or name_of(cls)} if name_of(cls) else {}
        return head | {name: _plain(getattr(value, name)) for name in keys_of(cls)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InvalidValueError(f"dump: expected a value of a recipe, found {found_text(value)}")


def _join(path: str, key: object, value: Any = None) -> str:
    """The dotted path of a key, with dashes before it where its value was typed."""
    dashes = "--" if isinstance(value, (Typed, Patch)) else ""
    return f"{dashes}{path}.{key}" if path else f"{dashes}{key}"
