"""Read rows from one file, whatever its kind, without trusting its size, depth or encoding."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdistill.errors import DataError
from tdistill.plain_json import DECODER, BadJSON, RepeatedKey, parse_json

MAX_LINE_BYTES = 1 << 24  # of a line of JSONL or CSV
MAX_FILE_BYTES = 1 << 30  # of a .json or a text file, which is read whole
MAX_DEPTH = 64  # of objects and lists inside a row
_BETWEEN = re.compile(r"[\s,]*")  # rows of a list
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SourceRow:
    """One row as read: ``values`` by column, ``where`` (``file:line`` or row index) for errors."""

    where: str
    values: dict[str, Any]


def read_file(path: Path) -> Iterator[SourceRow]:
    """The rows of a file of one of the kinds in ``ROW_SUFFIXES``.

    Args:
        path: an existing file; its suffix says how it is read.

    Raises:
        DataError: a kind of file that is not understood, or content that is damaged, too deep or
            too large.
    """
    for suffix, reader in _READERS.items():
        if path.name.lower().endswith(suffix):
            return reader(path)
    text = path.suffix.lower() in (".txt", ".md")
    raise DataError(
        f"{path}: expected a file of rows ({', '.join(ROW_SUFFIXES)}); found another kind. "
        "Convert the file" + (", or give it as data.lm_text if it is plain text." if text else ".")
    )


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, a byte-order mark left out.

    Raises:
        DataError: the file is not UTF-8, or too large to be read at once.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{path}: expected at most {MAX_FILE_BYTES:,} bytes in a file that is read at once; "
            f"found {size:,}. Write rows as .jsonl, or text as several files."
        )
    content = path.read_bytes().removeprefix(_BOM)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _not_utf8(f"{path}:{line}", error) from error


def row_place(source: object, index: int) -> str:
    """Where a row is in a source without lines."""
    return f"{source}, row {index} (counted from 0)"


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
        bytes: "bytes",
    }
    return names.get(type(value), "a value of another kind")


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    wide = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
    found = "UTF-16" if wide else f"byte {error.object[error.start]:#04x} ({error.reason})"
    return DataError(f"{where}: expected UTF-8 text; found {found}. Convert the file to UTF-8.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line; lines end at line feeds only.

    A lone carriage return is white space within a JSON object.
    """
    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            for number in itertools.count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                yield number, _decoded(line, f"{path}:{number}")
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(
            f"{path}: expected a gzip file; found one that cannot be read to its end. Write the "
            "file again."
        ) from error


def _decoded(line: bytes, where: str) -> str:
    if len(line) > MAX_LINE_BYTES:
        raise DataError(
            f"{where}: expected at most {MAX_LINE_BYTES:,} bytes on a line; found more. "
            "Give each row its own line."
        )
    try:
        return line.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from error


def _jsonl_rows(path: Path) -> Iterator[SourceRow]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield SourceRow(where, _as_object(_json_line(line, where), where))


def _json_line(line: str, where: str) -> Any:
    try:
        return checked_json(line, where)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: expected one JSON object on the line; found {_excerpt(line)} "
            f"({error.msg} at column {error.colno}). Correct the line or remove it."
        ) from error


def checked_json(text: str, where: str) -> Any:
    """A JSON value that is neither too deep nor too large to be worked with.

    Raises:
        DataError: objects or lists lie too deep in each other, a number is gigantic, or an object
            has one key twice.
        json.JSONDecodeError: it is no JSON.
    """
    try:
        value = parse_json(text)
    except BadJSON as error:
        raise _refusal(where, error) from error
    check_depth(value, where)
    return value


def _refusal(where: str, error: BadJSON) -> DataError:
    if isinstance(error, RepeatedKey):
        return DataError(
            f"{where}: expected each key once in an object; found {error}. Rename or remove one."
        )
    return DataError(
        f"{where}: expected numbers of a usual size, and objects and lists at most {MAX_DEPTH} "
        f"deep in each other; found {error}. Flatten the row, or remove it."
    )


def check_depth(value: Any, where: str) -> None:
    """Refuse objects and lists that lie deeper in each other than ``MAX_DEPTH``.

    Raises:
        DataError: they do.
    """
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        inner = (item for outer in level for item in _items(outer))
        level = [item for item in inner if isinstance(item, (dict, list))]
    raise _too_deep(where)


def _items(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def _too_deep(where: str) -> DataError:
    return DataError(
        f"{where}: expected objects and lists at most {MAX_DEPTH} deep in each other; found more. "
        "Flatten the row, or remove it."
    )


def _json_rows(path: Path) -> Iterator[SourceRow]:
    text = read_text(path)
    try:
        content = parse_json(text)
        check_depth(content, str(path))
    except BadJSON as error:
        line = f":{_line_of_repeat(text)}" if isinstance(error, RepeatedKey) else ""
        raise _refusal(f"{path}{line}", error) from error
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
        where = row_place(path, index)
        yield SourceRow(where, _as_object(value, where))


def _line_of_repeat(text: str) -> int:
    """The line in which the object of a list begins that has one key twice."""
    begin = text.find("[") + 1
    with suppress(ValueError):  # at that object
        while between := _BETWEEN.match(text, begin):
            begin = between.end()
            _, begin = DECODER.raw_decode(text, begin)
    return text.count("\n", 0, begin) + 1


def _csv_rows(path: Path) -> Iterator[SourceRow]:
    tab = ".tsv" in path.name.lower()
    lines = (line for _, line in _lines(path))
    reader = csv.DictReader(lines, delimiter="\t" if tab else ",", strict=True)
    try:
        _refuse_twice(reader.fieldnames or (), path)
        for values in reader:
            where = f"{path}:{reader.line_num}"
            if None in values.values():
                raise DataError(
                    f"{where}: expected a field for each of the {len(values)} columns; found "
                    "fewer. Write empty ones too, or remove the row."
                )
            if None in values:
                raise DataError(
                    f"{where}: expected a field for each of the {len(values) - 1} columns; "
                    "found more. Put texts with separators in quotes."
                )
            yield SourceRow(where, dict(values))
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: expected comma- or tab-separated fields; found a row that "
            f"cannot be read ({error}). Correct it, or write the file as .jsonl."
        ) from error


def _refuse_twice(columns: Iterable[str], path: Path) -> None:
    """Refuse two columns of one name, of which a row could hold one."""
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: expected columns of different names; found {twice[0]} more than once. "
            "Rename or remove one."
        )


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    import pyarrow
    import pyarrow.parquet

    index = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_twice(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    yield SourceRow(row_place(path, index), without_nulls(values))
                    index += 1
    except (pyarrow.ArrowException, OSError, MemoryError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: expected a Parquet file; found one that cannot be read after row {index} "
            f"({_first_line(error)}). Write the file again."
        ) from error


def without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """A row of Arrow data without the nulls inside its columns.

    Arrow gives every object of a column the keys of all others, with null where a key is absent; a
    chat template would write them out as arguments of a tool.
    """
    return {name: _pruned(value) for name, value in values.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(item) for key, item in value.items() if item is not None}
    return [_pruned(item) for item in value] if isinstance(value, list) else value


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(
        f"{where}: expected a JSON object with a name for each column; "
        f"found {type_name(value)}. Give each row as an object."
    )


def _excerpt(line: str, width: int = 60) -> str:
    line = line.strip()
    short = line if len(line) <= width else f"{line[:width]}..."
    return json.dumps(short, ensure_ascii=True)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


_READERS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
    ".jsonl": _jsonl_rows,
    ".jsonl.gz": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".csv.gz": _csv_rows,
    ".tsv": _csv_rows,
    ".tsv.gz": _csv_rows,
}
ROW_SUFFIXES = tuple(_READERS)
