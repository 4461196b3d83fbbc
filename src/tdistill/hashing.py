"""One way to name work by what it depends on, and files by what is in them. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from tdistill.errors import InvalidValueError

_LENGTH = 16
_PARTS, _PART_BYTES = 256, 1 << 16  # of a sample: 16 MiB, the first part with the header
_SCALARS = {str, int, bool, type(None)}


def key_of(*parts: Any) -> str:
    """A short hash of plain values: what a stage, a shard or a checkpoint depends on.

    Equal values share a key: 1 and 1.0, 0.0 and -0.0, lists and tuples, mappings in any order,
    paths and their text. Values that differ do not: ``True`` and 1, dataclasses of two classes,
    a dataclass and the mapping of its fields. Fields that do not compare do not count.

    Raises:
        InvalidValueError: for an object that is no plain value, whose text might hide or invent
            differences.

    Example:
        >>> key_of({"a": 1, "b": (1, 2)}) == key_of({"b": [1.0, 2], "a": 1})
        True
        >>> len({key_of(1), key_of(True), key_of("1"), key_of([1]), key_of(None)})
        5
    """
    text = json.dumps([_canonical(part) for part in parts], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def _canonical(value: Any) -> Any:
    """Scalars for JSON; all else is a list that begins with its kind."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, (list, tuple)):  # of many tokens, mostly
        return ["list", *(x if type(x) in _SCALARS else _canonical(x) for x in value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        pairs = [[_canonical(key), _canonical(item)] for key, item in value.items()]
        return ["mapping", *sorted(pairs, key=json.dumps)]
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        held = [[f.name, _canonical(getattr(value, f.name))] for f in fields(value) if f.compare]
        return [f"{kind.__module__}.{kind.__qualname__}", *held]
    raise InvalidValueError(
        f"a key of work: expected plain values (numbers, text, lists, mappings, dataclasses), "
        f"found {type(value).__name__}; name it by its fields"
    )


def checksum_of(content: Mapping[str, Any]) -> str:
    """Of all entries of a JSON object but ``sha256``, which holds it, however they are laid out."""
    entries = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; reads a part at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sample_sha256(path: Path) -> str:
    """SHA-256 of a file's size and of parts of it, evenly spaced: for weights of many gigabytes.

    Training moves every weight, so a hundredth of them tells two models apart.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for part in range(_PARTS):
            file.seek(part * max(size - _PART_BYTES, 0) // (_PARTS - 1))
            digest.update(file.read(_PART_BYTES))
    return digest.hexdigest()
