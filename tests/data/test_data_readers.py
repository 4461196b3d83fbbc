"""Files from strangers: compressed, tabular, too deep, too large, too long."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc

import pytest

from tdistill.data import readers
from tdistill.data.sources import read_rows
from tdistill.errors import DataError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c, d", "completion": "e\nf"}]


def test_compressed_lines_are_read_with_their_numbers(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    rows = read_rows(str(path))
    assert [row.values for row in rows] == ROWS
    assert rows[1].where == f"{path}:2"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="expected a gzip file"):
        read_rows(str(path))
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="expected a gzip file"):
        read_rows(str(path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'prompt,completion\na,b\n"c, d","e\nf"\n'),
        ("a.tsv", 'prompt\tcompletion\na\tb\nc, d\t"e\nf"\n'),
        ("a.csv", '\ufeffprompt,completion\r\na,b\r\n"c, d","e\nf"\r\n'),
    ],
)
def test_tables_of_text(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode())
    rows = read_rows(str(path))
    assert [row.values for row in rows] == ROWS
    assert rows[0].where == f"{path}:2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prompt,completion\na,b,c\n", ":2: expected a field for each of the 2 columns"),
        (
            "prompt,completion\na,b\nc\n",
            ":3: expected a field for each of the 2 columns; found few",
        ),
        (
            "prompt,prompt\na,b\n",
            "expected columns of different names; found prompt more than once",
        ),
        ('prompt\n"a\n', "found a row that cannot be read"),
        ('prompt\n"a"b\n', "found a row that cannot be read"),
        (f"prompt\n{'a' * 200_000}\n", "write the file as .jsonl"),
    ],
)
def test_damaged_tables_are_refused_with_the_line(tmp_path, text, expected):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


DEEP = "[" * 1000 + "]" * 1000


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (DEEP, "at most 64 deep"),
        ('{"a": ' * 1000 + "1" + "}" * 1000, "at most 64 deep"),
        ("[" * 90 + "]" * 90, "at most 64 deep"),
        ("[" * 5_000_000, "at most 64 deep"),
        ("9" * 100_000, "found a number of thousands of digits"),
        ("-" + "9" * 1_000_000, "found a number of thousands of digits"),
    ],
)
def test_what_is_too_deep_or_too_large_is_one_line_at_once(tmp_path, suffix, value, expected):
    path = tmp_path / f"a.{suffix}"
    row = f'{{"prompt": {value}}}'
    path.write_text(row if suffix == "jsonl" else f"[{row}]")
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(DataError) as caught:
            read_rows(str(path))
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert time.perf_counter() - started < 1.0
    assert peak < 64 << 20
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_rows_as_deep_as_people_write_them_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "a", "meta": {"[" * 60}{"]" * 60}}}\n')
    assert len(read_rows(str(path))) == 1


def test_huge_lines_and_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(readers, "MAX_FILE_BYTES", 1000)
    row = json.dumps({"prompt": "a" * 2000})
    for name, text, expected in [
        (
            "a.jsonl",
            f'{{"prompt": "b"}}\n{row}\n',
            "a.jsonl:2: expected at most 1,000 bytes on a line",
        ),
        ("a.json", f"[{row}]", "a.json: expected at most 1,000 bytes in a file"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError) as caught:
            read_rows(str(tmp_path / name))
        assert expected in str(caught.value)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b" " * 50_000_000))
    with pytest.raises(DataError, match=r":1: expected at most 1,000 bytes on a line"):
        read_rows(str(packed))


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"PAR1" + b"\xff" * 200 + b"PAR1", "a Parquet file"), (b"", "a Parquet file")],
)
def test_damaged_parquet_is_one_line(tmp_path, content, kind):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"expected {kind}") as caught:
        read_rows(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_no_value_is_shown_as_python_writes_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{'prompt': None}\n")
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert """found "{'prompt': None}" (""" in str(caught.value)
    path.write_text('{"a": \x1b[31m}\n')
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert "\x1b" not in str(caught.value)
