"""From nested mappings to typed dataclasses, with every problem in one error."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, TypeVar

from tdistill.errors import InvalidValueError
from tdistill.strict.imported import import_class, is_import_path
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
from tdistill.strict.overrides import Option, override, refuse

T = TypeVar("T")
BAD: Any = object()  # stands for a value whose problem is already recorded
# YAML 1.1 reads 5e-6 (no point, or no sign of the exponent) as a string.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def structure(
    cls: type[T],
    document: Mapping[str, Any] | None,
    options: Sequence[Option] = (),
    *,
    where: str = "recipe.yaml",
) -> T:
    """An instance of a dataclass from a nested mapping, or a refusal with every reason.

    Classes may check themselves in ``__post_init__`` by raising `InvalidValueError`; such a check
    runs once everything inside the section is right, and its text gets the section's path.

    Args:
        cls: the dataclass.
        document: keys and values as YAML gives them; None is an empty document.
        options: of the command line, set in the document as `override` says. A value that does
            not fit its field is tried once more as the text that was typed.
        where: name of the document, for the text of errors.

    Returns:
        The instance; ints given for floats are floats, lists given for tuples are tuples.

    Raises:
        RecipeError: all unknown and missing keys and all wrong values, each with its dotted path
            (after ``--`` where it was typed), what was expected and found, and the nearest name.
        InvalidValueError: ``cls`` itself has a type that no document can give.
    """
    changed, typed = override(cls, document, options)
    instance, problems = _read(cls, changed)
    wrong = {path: text for path, text in problems if path in typed}
    # What YAML made of a text does not fit, but the text may, unless options went into it.
    texts = [path for path in wrong if not any(place.startswith(f"{path}.") for place in typed)]
    if texts:
        changed, _ = override(cls, document, options, as_text=texts)
        instance, problems = _read(cls, changed)
    refuse([_line(path, wrong.get(path, text), typed) for path, text in problems], where)
    return instance


def _read(cls: type, document: Any) -> tuple[Any, list[tuple[str, str]]]:
    reader = _Reader()
    return reader.read(cls, document), reader.problems


def _line(path: str, text: str, typed: Mapping[str, Option]) -> str:
    """A problem after its path, which gets dashes where an option gave the value or the key."""
    unknown = text.startswith("unknown key")
    for place, option in typed.items():
        if _is_in(path, place) or (unknown and _is_in(place, path)):
            if option.text is None and not unknown:
                text = text.partition(", found")[0] + " after it, found nothing"
            return f"--{path}: {text}"
    return f"{path}: {text}" if path else text


def _is_in(path: str, section: str) -> bool:
    return path.startswith(section) and path[len(section) :][:1] in ("", ".", "[")


class _Reader:
    """Turns values into instances and records every problem with its path on the way."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def read(self, kind: Any, value: Any, path: str = "", label: str | None = None) -> Any:
        """The value as ``kind``; ``label`` is the name of a dictionary's entry."""
        options, classes = options_of(kind), classes_of(kind)
        if value is None and type(None) in options:
            return None
        if classes and (value is None or isinstance(value, Mapping)):
            return self._section(classes, value or {}, path, label)
        for option in options:
            arguments = typing.get_args(option)
            if is_list(option) and isinstance(value, (list, tuple)):
                items = (self.read(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
                return typing.get_origin(option)(items)
            if typing.get_origin(option) is dict and isinstance(value, Mapping):
                return {k: self._entry(arguments[1], k, v, path) for k, v in value.items()}
        fitting = [fit for option in options if (fit := _exactly(option, value)) is not BAD]
        # The exact type wins: 3 stays an integer in `float | int`.
        fitting.sort(key=lambda fit: type(fit) is not type(value))
        return fitting[0] if fitting else self._refuse(path, _mismatch(kind, value))

    def _refuse(self, path: str, text: str) -> Any:
        self.problems.append((path, text))
        return BAD

    def _entry(self, kind: Any, key: Any, value: Any, path: str) -> Any:
        if not isinstance(key, str):
            found = f"expected a string as key, found {found_text(key)}; put it in quotes"
            return self._refuse(_join(path, key), found)
        return self.read(kind, value, _join(path, key), key)

    def _section(
        self, classes: Sequence[type], mapping: Mapping[Any, Any], path: str, label: str | None
    ) -> Any:
        cls = self._class(classes, mapping, path, label)
        if cls is BAD:
            return BAD
        before = len(self.problems)
        self._refuse_unknown(cls, mapping, path)
        values = self._values(cls, mapping, path)
        if len(self.problems) > before:
            return BAD
        try:
            return cls(**values)
        except InvalidValueError as error:
            return self._refuse(path, str(error))

    def _refuse_unknown(self, cls: type, mapping: Mapping[Any, Any], path: str) -> None:
        known = [*keys_of(cls), *([TAG] if name_of(cls) else [])]
        for name in mapping:
            if name not in known:
                cure = f"{nearest(name, known)} (keys here: {', '.join(known)})"
                self._refuse(_join(path, name), f"unknown key{cure}")

    def _values(self, cls: type, mapping: Mapping[Any, Any], path: str) -> dict[str, Any]:
        values = {}
        for name, key in keys_of(cls).items():
            if name in mapping:
                values[name] = self.read(key.kind, mapping[name], _join(path, name))
            elif key.default is MISSING:
                self._refuse(_join(path, name), f"missing; expected {type_text(key.kind)}")
        return values

    def _class(
        self, classes: Sequence[type], mapping: Mapping[Any, Any], path: str, label: str | None
    ) -> Any:
        """The class that a section is of, by its tag or the name of its entry."""
        known, base, name = by_name(classes), common_base(classes), mapping.get(TAG, label)
        if len(classes) == 1 and (TAG not in mapping or not known):
            return classes[0]
        if isinstance(name, str) and name in known:
            return known[name]
        if base and is_import_path(name):
            try:
                return import_class(name, base)
            except InvalidValueError as error:
                return self._refuse(_join(path, TAG), str(error))
        names = " | ".join([*known, *(["FILE.py:CLASS"] if base else [])])
        if TAG in mapping:
            text = f"expected {names}, found {found_text(name)}{nearest(name, known)}"
        else:
            entry = f" here or as the name of the entry{nearest(label, known)}" if label else ""
            text = f"missing; expected {names}{entry}"
        return self._refuse(_join(path, TAG), text)


def _exactly(kind: Any, value: Any) -> Any:
    """The value as a scalar type; BAD where it is of another, as true is no integer."""
    if kind is float:
        return _number(value)
    if kind is Path:
        return Path(value) if isinstance(value, (str, Path)) and value else BAD
    if typing.get_origin(kind) is Literal:
        same = (c for c in typing.get_args(kind) if type(c) is type(value) and c == value)
        return next(same, BAD)
    return value if type(value) is kind else BAD


def _number(value: Any) -> Any:
    exponent = isinstance(value, str) and _EXPONENT.fullmatch(value)
    try:
        number = float(value) if exponent or type(value) in (int, float) else math.nan
    except OverflowError:
        return BAD
    return number if math.isfinite(number) else BAD


def _mismatch(kind: Any, value: Any) -> str:
    options = options_of(kind)
    literals = (option for option in options if typing.get_origin(option) is Literal)
    choices = [str(choice) for literal in literals for choice in typing.get_args(literal)]
    cure = nearest(value, choices) if isinstance(value, str) else ""
    scalar = isinstance(value, (int, float)) or type(value).__name__ in ("date", "datetime")
    if scalar and (choices or {str, Path} & set(options)):
        cure = "; put it in quotes if it is meant as text"
    return f"expected {type_text(kind)}, found {found_text(value)}{cure}"


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
