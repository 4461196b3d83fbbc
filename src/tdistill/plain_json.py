"""JSON of whoever wrote it: read within bounds, no key twice, and what is wrong said in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tdistill.errors import excerpt


class BadJSON(ValueError):
    """A text is no JSON that can be used; the error says what was found instead."""


class RepeatedKey(BadJSON):
    """An object has one key twice, and only the last would count."""


def parse_json(text: str) -> Any:
    """A JSON value in which no object has one key twice.

    Raises:
        RepeatedKey: one has.
        BadJSON: it is nested beyond what Python follows, or has a number of thousands of digits.
        json.JSONDecodeError: it is no JSON.

    Example:
        >>> parse_json('{"a": [1, null]}')
        {'a': [1, None]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        tdistill.plain_json.RepeatedKey: the key a twice in one object, first with 1, then with 2
    """
    try:
        return DECODER.decode(text)
    except (BadJSON, json.JSONDecodeError):
        raise
    except RecursionError as error:
        raise BadJSON("objects and lists too deep in each other") from error
    except ValueError as error:
        raise BadJSON("a number of thousands of digits") from error


def read_json_object(path: Path, most: int = 1 << 26) -> dict[str, Any]:
    """The JSON object that a file of bounded size holds.

    Args:
        path: the file.
        most: bytes.

    Raises:
        BadJSON: it holds something else.
        OSError: it cannot be read.
    """
    if path.stat().st_size > most:
        raise BadJSON(f"a file of more than {most:,} bytes")
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BadJSON("bytes that are not UTF-8") from error
    except json.JSONDecodeError as error:
        raise BadJSON(f"no JSON ({error.msg} in line {error.lineno})") from error
    if not isinstance(found, dict):
        raise BadJSON(f"JSON that is no object ({excerpt(json.dumps(found), 40)})")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    names = [name for name, _ in pairs]
    key = next(name for name in names if names.count(name) > 1)
    first, then, *_ = (excerpt(json.dumps(x), 40) for name, x in pairs if name == key)
    raise RepeatedKey(
        f"the key {excerpt(key, 60)} twice in one object, first with {first}, then with {then}"
    )


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""What :func:`parse_json` decodes with, for those that read one value after another."""
