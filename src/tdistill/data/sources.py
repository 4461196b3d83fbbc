"""Read rows from files, dataset folders and the demo, each with the place it came from."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tdistill.errors import DataError

DEMO_PREFIX = "demo:"
ROW_SUFFIXES = (".jsonl", ".json", ".parquet")
UNDERSTOOD = (
    "a .jsonl, .json or .parquet file, a folder saved by datasets.save_to_disk, or demo:SPLIT"
)


@dataclass(frozen=True)
class SourceRow:
    """One row as read: ``values`` by column, ``where`` (``file:line`` or row index) for errors."""

    where: str
    values: dict[str, Any]


def read_rows(source: str, *, limit: int | None = None) -> list[SourceRow]:
    """Read the first rows of a source, in order.

    Args:
        source: a path or ``demo:SPLIT``, as in ``DataConfig``.
        limit: number of rows to read; ``None`` reads all.

    Returns:
        The rows, blank lines of a JSONL file left out.

    Raises:
        DataError: nothing at this path, a kind of file that is not understood, or damaged content.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit: expected at least 1 row of {source}; found {limit}. Raise it.")
    if source.startswith(DEMO_PREFIX):
        rows = _demo_rows(source.removeprefix(DEMO_PREFIX))
    else:
        rows = _path_rows(existing_path(source))
    return list(itertools.islice(rows, limit))


def column_names(rows: Sequence[SourceRow]) -> tuple[str, ...]:
    """All columns of the rows that hold a value somewhere, in order of appearance."""
    return tuple(
        dict.fromkeys(
            name for row in rows for name, value in row.values.items() if value is not None
        )
    )


def existing_path(source: str) -> Path:
    """The path of a source that must exist.

    Raises:
        DataError: there is nothing; the text names the nearest existing path.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    parent = path.parent
    missing = path.name
    while not parent.exists():
        missing, parent = parent.name, parent.parent
    names = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    near = difflib.get_close_matches(missing, names, n=1, cutoff=0.5)
    hint = f"Nearest existing name: {parent / near[0]}." if near else f"Look in {parent}."
    raise DataError(f"data source: expected {UNDERSTOOD}; found nothing at {source}. {hint}")


def demo_path() -> Path:
    """The file of prompts that ships with the package."""
    return Path(str(resources.files("tdistill") / "demo" / "prompts.jsonl"))


def _demo_rows(split: str) -> Iterator[SourceRow]:
    rows = list(_jsonl_rows(demo_path()))
    chosen = [row for row in rows if row.values.get("split") == split]
    if not chosen:
        splits = sorted({str(row.values.get("split")) for row in rows})
        raise DataError(
            f"data source: expected one of {', '.join(DEMO_PREFIX + name for name in splits)}; "
            f"found {DEMO_PREFIX}{split}. Use one of these names."
        )
    return iter(chosen)


def _path_rows(path: Path) -> Iterator[SourceRow]:
    if path.is_dir():
        return _folder_rows(path)
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _jsonl_rows(path)
    if suffix == ".json":
        return _json_rows(path)
    if suffix == ".parquet":
        return _parquet_rows(path)
    raise DataError(
        f"data source: expected {UNDERSTOOD}; found {path}. Convert the file"
        + (", or give it as data.lm_text if it is plain text." if suffix == ".txt" else ".")
    )


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, a byte-order mark left out.

    Raises:
        DataError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{path}: expected UTF-8 text; found byte {error.object[error.start]:#04x} "
        f"({error.reason}). Convert the file to UTF-8."
    )


def _jsonl_rows(path: Path) -> Iterator[SourceRow]:
    # Lines end at line feeds only: a lone carriage return is white space within a JSON object.
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _jsonl_row(line, f"{path}:{number}")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error


def _jsonl_row(line: str, where: str) -> SourceRow:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: expected one JSON object on the line; found {_excerpt(line)} "
            f"({error.msg} at column {error.colno}). Correct the line or remove it."
        ) from error
    return SourceRow(where, _as_object(value, where))


def _json_rows(path: Path) -> Iterator[SourceRow]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        cure = (
            "The file seems to hold one object a line: name it .jsonl."
            if error.msg == "Extra data"
            else "Correct the file."
        )
        raise DataError(
            f"{path}:{error.lineno}: expected a JSON list of objects; "
            f"found {error.msg} at column {error.colno}. {cure}"
        ) from error
    if not isinstance(content, list):
        raise DataError(
            f"{path}: expected a JSON list of objects; found {type_name(content)}. "
            "Write the rows as one list, or one object a line in a .jsonl file."
        )
    for index, value in enumerate(content):
        where = _row_place(path, index)
        yield SourceRow(where, _as_object(value, where))


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    import pyarrow
    import pyarrow.parquet

    index = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    yield SourceRow(_row_place(path, index), value)
                    index += 1
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: expected a Parquet file; found one that cannot be read after row {index} "
            f"({error}). Write the file again."
        ) from error


def _folder_rows(path: Path) -> Iterator[SourceRow]:
    if (path / "dataset_dict.json").exists():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise DataError(
            f"{path}: expected one split; found a dataset with the splits {', '.join(splits)}. "
            f"Name one, for example {path / splits[0] if splits else path / 'train'}."
        )
    if not (path / "dataset_info.json").exists():
        raise DataError(
            f"{path}: expected a folder saved by datasets.save_to_disk; found a folder without "
            "dataset_info.json. Name a file inside it, or save the dataset with save_to_disk."
        )
    from datasets import Dataset, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: expected a folder saved by datasets.save_to_disk; found one that cannot be "
            f"read ({error}). Save the dataset again."
        ) from error
    assert isinstance(dataset, Dataset)
    for index, value in enumerate(dataset.with_format(None)):
        yield SourceRow(_row_place(path, index), dict(value))


def _row_place(path: Path, index: int) -> str:
    return f"{path}, row {index} (counted from 0)"


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(
        f"{where}: expected a JSON object with a name for each column; "
        f"found {type_name(value)}. Give each row as an object."
    )


def _excerpt(line: str, width: int = 60) -> str:
    line = line.strip()
    return repr(line if len(line) <= width else line[:width] + "...")


def type_name(value: Any) -> str:
    """The type of a value in the words of JSON, for messages."""
    names = {
        bool: "true or false",
        str: "text",
        list: "a list",
        dict: "an object",
        type(None): "null",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__)
