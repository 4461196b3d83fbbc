"""YAML files and YAML values, with every key given once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from tdistill.errors import RecipeError
from tdistill.strict.kinds import found_text, nearest


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but refusing a key given twice, of which it keeps the last."""

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


def parse(text: str) -> Any:
    """The value that a text of the command line has as YAML; the text itself where it is none."""
    try:
        value = yaml.load(text, _UniqueKeyLoader)
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
    path = Path(path)
    try:
        document = yaml.load(_read(path), _UniqueKeyLoader)
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
        cure = f"; the folder {path.parent} does not exist either"
        if path.parent.is_dir():
            cure = nearest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
        raise RecipeError(f"{path}: expected a YAML file, found none{cure}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected a UTF-8 YAML file, but {error}") from error
