"""The options of a command line, and a document with their values in it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING
from typing import Any, NamedTuple

from tdistill.errors import RecipeError
from tdistill.strict.dumping import plain
from tdistill.strict.kinds import classes_of, found_text, keys_of
from tdistill.strict.yaml_text import parse


class Option(NamedTuple):
    """``--section.field value``: the dotted name, and the value as text (None: there is none)."""

    name: str
    text: str | None


def split_words(words: Sequence[str]) -> tuple[list[str], list[Option]]:
    """The words of a command line: those that stand alone, and the options.

    Example:
        >>> split_words(["a.yaml", "--out", "x", "--training.steps=3", "--training.bf16"])[1][1:]
        [Option(name='training.steps', text='3'), Option(name='training.bf16', text=None)]
    """
    alone: list[str] = []
    options: list[Option] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            alone.append(word)
        elif equals:
            options.append(Option(name, text))
        else:
            given = rest and not rest[0].startswith("--")
            options.append(Option(name, rest.pop(0) if given else None))
    return alone, options


def override(
    cls: type, document: Any, options: Sequence[Option], as_text: Collection[str] = ()
) -> tuple[Any, dict[str, Option]]:
    """A copy of a document of a class with options set in it, and the options by dotted path.

    A value is read as YAML, or taken as it stands where its path is in ``as_text``. A name alone is
    a flag, ``section.no-flag`` sets it to false. Dashes and underscores are equal in names. A
    section that the document lacks starts from the default of its field. The last value counts.

    Raises:
        RecipeError: all options that name something inside a value that is no section.
    """
    result = {} if document is None else copy.deepcopy(document)
    typed: dict[str, Option] = {}
    problems: list[str] = []
    for option in options:
        *sections, leaf = option.name.split(".")
        node, path = _enter(result, cls, sections)
        if isinstance(node, dict):
            negated = option.text is None and leaf[:3] in ("no-", "no_")
            key = _key(node, leaf[3:] if negated else leaf)
            place = ".".join([*path, key])
            node[key] = not negated if option.text is None else option.text
            if option.text is not None and place not in as_text:
                node[key] = parse(option.text)
            typed[place] = option
        else:
            found = f"expected a section at {'.'.join(path)}, found {found_text(node)}"
            problems.append(f"--{option.name}: {found}")
    refuse(problems, "command line")
    return result, typed


def _enter(node: Any, cls: type | None, names: Sequence[str]) -> tuple[Any, list[str]]:
    """What stands under nested names, made where there is nothing, and the keys on the way."""
    path: list[str] = []
    for name in names:
        if not isinstance(node, dict):
            break
        key = _key(node, name)
        path.append(key)
        known = keys_of(cls).get(key) if cls else None
        if key not in node and known and known.default is not MISSING:
            node[key] = plain(known.default)
        if node.get(key) is None:
            node[key] = {}
        classes = classes_of(known.kind) if known else ()
        node, cls = node[key], classes[0] if len(classes) == 1 else None
    return node, path


def _key(node: Mapping[Any, Any], name: str) -> str:
    """The key of a section that a name means: dashes and underscores are equal."""
    same = name.replace("-", "_")
    return next((key for key in node if str(key).replace("-", "_") == same), same)


def refuse(problems: Sequence[str], where: str) -> None:
    """Raise one error with all problems, if there are any."""
    if len(problems) == 1:
        raise RecipeError(f"{where}: {problems[0]}")
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise RecipeError(f"{where} has {len(problems)} problems:{lines}")
