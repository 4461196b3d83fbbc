"""The help of a recipe: every key with its type, its default and its words in the source."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, is_dataclass
from typing import Any, NamedTuple

from tdistill.strict.kinds import (
    classes_of,
    common_base,
    keys_of,
    name_of,
    options_of,
    type_text,
)


class FieldHelp(NamedTuple):
    """One line of ``tdistill run --help``."""

    path: str
    type_text: str
    default_text: str
    help: str


def describe(cls: type, prefix: str = "", instance: Any = MISSING) -> Iterator[FieldHelp]:
    """A line of help for every key of a dataclass and of those inside it.

    A path of a named entry shows the name that chooses its class
    (``objectives.bellman_distill.alpha``) or ``NAME``. The help is the docstring right after a
    field, else the comment at the end of its line.

    Args:
        cls: the dataclass.
        prefix: of the paths.
        instance: its values are the defaults; left out: those of the class.
    """
    helps = _helps(cls)
    for name, key in keys_of(cls).items():
        path, default = prefix + name, getattr(instance, name, key.default)
        classes = classes_of(key.kind)
        if len(options_of(key.kind)) > 1 or not classes:
            text = helps.get(name, "")
            yield FieldHelp(path, type_text(key.kind), _default_text(default), text)
        for inner in classes:
            yield from describe(inner, f"{path}.", default if type(default) is inner else MISSING)
        if typing.get_origin(key.kind) is dict:
            yield from _entries(classes_of(typing.get_args(key.kind)[1]), path)


def _entries(classes: tuple[type, ...], path: str) -> Iterator[FieldHelp]:
    """Fields that the classes share are listed once; under a class only what is its own."""
    base = common_base(classes)
    shared = {name: key.default for name, key in keys_of(base).items()} if base else {}
    if base:
        yield from describe(base, f"{path}.NAME.")
    for cls in classes:
        prefix = f"{path}.{name_of(cls) or 'NAME'}."
        for line in describe(cls, prefix):
            name = line.path.removeprefix(prefix)
            if name not in shared or _default_text(shared[name]) != line.default_text:
                yield line


def _default_text(value: Any) -> str:
    if value is MISSING:
        return "required"
    if isinstance(value, dict):
        return "{" + ", ".join(value) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_default_text, value)) + "]"
    if is_dataclass(value):
        return name_of(type(value)) or type(value).__name__
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _helps(cls: type) -> dict[str, str]:
    """The help of each field; a default that a class changes without a word keeps its base's."""
    helps: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            helps |= _own_helps(base)
    return helps


@functools.cache
def _own_helps(cls: type) -> dict[str, str]:
    """The help of the fields that a class itself defines; empty where it has no source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # as in a REPL
        return {}
    lines = source.splitlines()
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    helps = {}
    for node, after in itertools.pairwise([*body, ast.Pass()]):
        match node, after:
            case ast.AnnAssign(target=target), ast.Expr(ast.Constant(str(docstring))):
                helps[ast.unparse(target)] = " ".join(docstring.split())
            case ast.AnnAssign(target=target, end_lineno=int(end)), _:
                helps[ast.unparse(target)] = lines[end - 1].partition("  # ")[2]
    return {name: text for name, text in helps.items() if text}
