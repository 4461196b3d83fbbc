"""Recipes as text: YAML files, and the words of the command line."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tdistill.errors import RecipeError
from tdistill.strict.kinds import found_text, nearest
from tdistill.strict.loader import Patch, Typed, refuse


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
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("--"):
            alone.append(name + equals + text)
        elif equals:
            options.append(Option(name[2:], text))
        else:
            given = rest and not rest[0].startswith("--")
            options.append(Option(name[2:], rest.pop(0) if given else None))
    return alone, options


def override(document: Mapping[str, Any], options: Sequence[Option]) -> dict[str, Any]:
    """A copy of a document with the values of the command line in it, for `load` to check.

    A value is read as YAML, or as plain text where only that fits the field. A name alone is a
    flag, ``section.no-flag`` sets it to false. Dashes and underscores are equal in names. A section
    that the document lacks starts from the default of its field. The last of several values counts.

    Raises:
        RecipeError: all options that name something inside a value that is no section.
    """
    result = copy.deepcopy(dict(document))
    problems: list[str] = []
    for option in options:
        *sections, leaf = option.name.split(".")
        node: Any = result
        for section in sections:
            node = _enter(node, section)
            if not isinstance(node, dict):
                found = f"expected a section at {section}, found {found_text(node)}"
                problems.append(f"--{option.name}: {found}")
                break
        else:
            _set(node, leaf, option.text)
    refuse(problems, "command line")
    return result


def _enter(node: dict[str, Any], name: str) -> Any:
    """What stands under a name, with a section made where there is nothing."""
    key = _key(node, name)
    inside = node.get(key)
    if isinstance(inside, Typed):  # the whole section, given by an option before
        inside = copy.deepcopy(inside.value)
    if inside is None:
        inside = {} if key in node else Patch()
    node[key] = inside
    return inside


def _set(node: dict[str, Any], name: str, text: str | None) -> None:
    if text is not None:
        node[_key(node, name)] = Typed(_value(text), text)
    elif name[:3] in ("no-", "no_"):
        node[_key(node, name[3:])] = Typed(value=False, text=None)
    else:
        node[_key(node, name)] = Typed(value=True, text=None)


def _key(node: Mapping[Any, Any], name: str) -> str:
    """The key of a section that a name means: dashes and underscores are equal."""
    plain = name.replace("-", "_")
    return next((key for key in node if str(key).replace("-", "_") == plain), plain)


def _value(text: str) -> Any:
    import yaml

    try:
        value = yaml.load(text, _unique_key_loader())
    except yaml.YAMLError:
        return text
    # YAML would cut a text at " #", and a lone comment is no null.
    cut = isinstance(value, str) and text.strip()[:1] not in ("'", '"')
    void = value is None and text.strip().lower() not in ("", "~", "null")
    return text if cut or void else value


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a UTF-8 file of one YAML document, its values as YAML 1.1 gives them.

    Raises:
        RecipeError: the file is missing (with the nearest name in its folder), cannot be read, is
            empty, is not YAML (with line and column), has a key twice, or is not a mapping.
    """
    import yaml

    path = Path(path)
    try:
        document = yaml.load(_read(path), _unique_key_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"{path}{at}: expected YAML, but {reason}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: expected YAML, but {error}") from error
    if not isinstance(document, dict):
        found = "an empty file" if document is None else found_text(document)
        raise RecipeError(f"{path}: expected keys and values at the top, found {found}")
    return document


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        folder = path.parent
        cure = f"; the folder {folder} does not exist either"
        if folder.is_dir():
            cure = nearest(path.name, sorted(entry.name for entry in folder.iterdir()))
        raise RecipeError(f"{path}: expected a YAML file, found none{cure}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected a UTF-8 YAML file, but {error}") from error


@functools.cache
def _unique_key_loader() -> Any:
    """PyYAML's safe loader, but refusing a key given twice, of which it keeps the last."""
    import yaml
    from yaml.composer import ComposerError

    class UniqueKeyLoader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            first: dict[str, int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if key.value in first:
                    text = f"the key {key.value!r} is given twice, first in line {first[key.value]}"
                    raise ComposerError(None, None, text, key.start_mark)
                first[key.value] = line
            return node

    return UniqueKeyLoader
