"""YAML files and YAML values, with every key given once, of a size that a person would write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from tdistill.errors import RecipeError
from tdistill.strict.kinds import found_text, nearest

_MOST_BYTES = 1 << 20
_MOST_VALUES = 100_000  # with every alias written out
_MOST_DIGITS = 100
_MOST_LEVELS = 100
_OLD_NUMBER = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-9]+)+(\.[0-9_]*)?)")  # octal, base 60
_BRACKETS = re.compile(r"[\[\]{}]")


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but refusing a key given twice, of which it keeps the last.

    And what takes for ever: numbers of a million digits, aliases of aliases of aliases.
    """

    def compose_document(self) -> Any:
        root = super().compose_document()
        try:
            values = _values_in(root, {})
        except RecursionError:  # an anchor that holds an alias of itself
            values = _MOST_VALUES + 1
        if values > _MOST_VALUES:
            text = f"it has more than {_MOST_VALUES:,} values once its aliases are written out"
            raise ComposerError(None, None, text, None)
        return root

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if node.tag in _NUMBERS and len(node.value) > _MOST_DIGITS:
            text = f"a number of {len(node.value):,} characters"
            raise ComposerError(None, None, text, node.start_mark)
        if node.tag in _NUMBERS and _OLD_NUMBER.fullmatch(node.value):
            value = self.construct_object(node)
            text = f"{node.value} is {value} in YAML; write that number, or a text in quotes"
            raise ComposerError(None, None, text, node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                text = f"the key {key.value!r} is given twice, first in line {lines[key.value]}"
                raise ComposerError(None, None, text, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _values_in(node: Any, known: dict[int, int]) -> int:
    """Values of a node, those of an alias as often as it stands."""
    if id(node) not in known:
        inside = node.value if isinstance(node, yaml.CollectionNode) else ()
        nodes = [x for item in inside for x in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values_in(x, known) for x in nodes)
    return known[id(node)]


def parse(text: str) -> Any:
    """The value that a text of the command line has as YAML; the text itself where it is none."""
    try:
        value = yaml.load(text, _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
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
    path = Path(path)
    content = _read(path)
    try:
        document = yaml.load(content, _UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"{path}{at}: expected YAML, but {reason}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{path}: expected YAML, but {error}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: expected YAML of a few levels, found hundreds") from error
    if not isinstance(document, dict):
        found = "an empty file" if document is None else found_text(document)
        raise RecipeError(f"{path}: expected keys and values at the top, found {found}")
    return document


def _deepest(text: str) -> int:
    """Most brackets that are open at a time, those in texts counted as well."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= _MOST_BYTES else ""
    except FileNotFoundError as error:
        cure = f"; the folder {path.parent} does not exist either"
        if path.parent.is_dir():
            cure = nearest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
        raise RecipeError(f"{path}: expected a YAML file, found none{cure}") from error
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at {error.start}"
        raise RecipeError(
            f"{path}: expected a UTF-8 YAML file, found {found}; convert it"
        ) from error
    except OSError as error:
        raise RecipeError(f"{path}: expected a UTF-8 YAML file, but {error.strerror}") from error
    if size > _MOST_BYTES:
        raise RecipeError(f"{path}: expected a recipe of at most 1 MiB, found {size:,} bytes")
    if _deepest(text) > _MOST_LEVELS:
        raise RecipeError(f"{path}: expected YAML of a few levels, found hundreds")
    return text
