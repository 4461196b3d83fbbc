from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tdistill.data import sources
from tdistill.data.columns import detect_format, named_columns
from tdistill.data.readers import SourceRow
from tdistill.data.sources import column_names, read_rows
from tdistill.errors import DataError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": None}]


def write(path: Path, kind: str) -> str:
    if kind == "jsonl":
        path = path / "rows.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    elif kind == "json":
        path = path / "rows.json"
        path.write_text(json.dumps(ROWS))
    elif kind == "parquet":
        path = path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        from datasets import Dataset

        path = path / "saved"
        Dataset.from_list(ROWS).save_to_disk(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "folder"])
def test_every_kind_of_source_gives_the_same_rows(tmp_path, kind):
    source = write(tmp_path, kind)
    rows = read_rows(source)
    assert [row.values for row in rows] == ROWS
    assert rows[1].where == f"{source}:2" if kind == "jsonl" else "row 1" in rows[1].where
    assert [row.values for row in read_rows(source, limit=1)] == ROWS[:1]


def test_columns_without_any_value_do_not_count():
    rows = [
        SourceRow("1", {"a": 1, "b": None}),
        SourceRow("2", {"c": "", "a": None}),
    ]
    assert column_names(rows) == ("a", "c")


def test_a_row_may_hold_unusual_line_separators(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"prompt":\r"a\u2028b"}\r\n{"prompt": "c"}\n'.encode())
    rows = read_rows(str(path))
    assert [row.values["prompt"] for row in rows] == ["a\u2028b", "c"]
    assert rows[1].where == f"{path}:2"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n\n{"prompt": \n', ":3: expected one JSON object"),
        ("a.jsonl", b'["prompt"]\n', ":1: expected a JSON object with a name for each column"),
        (
            "a.jsonl",
            b'{"prompt": "a"}\n{"prompt": "\xff"}\n',
            ":2: expected UTF-8 text; found byte 0xff",
        ),
        ("a.json", b'[{"prompt": "a"},\n{"prompt": "\xff"}]', ":2: expected UTF-8 text"),
        ("a.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), ":1: expected UTF-8 text; found UTF-16"),
        ("a.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', ":2: expected a JSON list"),
        ("a.json", b'{"prompt": "a"}\n{"prompt": "b"}\n', "name it .jsonl"),
        (
            "a.jsonl",
            b'{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}\n',
            ":2: expected each key once",
        ),
        (
            "a.jsonl",
            b'{"m": [{"b": 1, "b": {}}]}',
            "the key b twice in one object, first with 1, then with {}",
        ),
        (
            "a.json",
            b'[{"a": "]"},\n\n {"b": {"c": 1,\n "c": 1}}]',
            ":3: expected each key once in an",
        ),
        ("a.json", b'{"a": 1, "a": [2]}', ":1: expected each key once in an object"),
        ("a.json", b'{"prompt": "a"}', "expected a JSON list of objects; found an object"),
        ("a.json", b'[{"prompt": "a"}, "b"]', "row 1 (counted from 0): expected a JSON object"),
        ("a.parquet", b"PAR1", "expected a Parquet file"),
        ("a.xlsx", b"PK", "expected a file of rows (.jsonl, .jsonl.gz"),
        ("a.txt", b"text", "data.lm_text"),
    ],
)
def test_damaged_files_are_refused_with_the_place(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_rows_after_the_limit_are_not_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\nnot json\n')
    assert len(read_rows(str(path), limit=1)) == 1
    with pytest.raises(DataError, match="at least 1 row"):
        read_rows(str(path), limit=0)


def test_a_missing_file_names_the_nearest_existing_one(tmp_path):
    near = tmp_path / "train" / "prompts.jsonl"
    near.parent.mkdir()
    near.touch()
    for wrong, nearest in [
        (tmp_path / "train" / "promts.jsonl", near),
        (tmp_path / "trian" / "prompts.jsonl", near.parent),
    ]:
        with pytest.raises(DataError) as caught:
            read_rows(str(wrong))
        text = str(caught.value)
        assert f"found nothing at {wrong} (searched {nearest.parent})." in text
        assert f"Nearest existing name: {nearest}." in text


def test_folders_that_are_not_one_split_are_refused(tmp_path):
    from datasets import Dataset, DatasetDict

    split = Dataset.from_list(ROWS)
    DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(DataError, match="with the splits test, train"):
        read_rows(str(tmp_path / "both"))
    assert len(read_rows(str(tmp_path / "both" / "train"))) == len(ROWS)
    with pytest.raises(DataError, match="without dataset_info"):
        read_rows(str(tmp_path))


def test_the_demo_is_read_by_split(tmp_path, monkeypatch):
    path = tmp_path / "prompts.jsonl"
    splits = ["train", "test", "train"]
    path.write_text("".join(json.dumps({"n": i, "split": s}) + "\n" for i, s in enumerate(splits)))
    monkeypatch.setattr(sources, "demo_path", lambda: path)
    assert [row.values["n"] for row in read_rows("demo:train")] == [0, 2]
    with pytest.raises(DataError, match="expected one of demo:test, demo:train; found demo:tset"):
        read_rows("demo:tset")


def test_the_demo_ships_with_the_package():
    names = {split: read_rows(f"demo:{split}") for split in ("train", "valid", "test")}
    prompts = [
        (row.values["instruction"], row.values["input"]) for rows in names.values() for row in rows
    ]
    assert len(set(prompts)) == len(prompts)


def test_patterns_name_files_in_the_order_of_their_names(tmp_path):
    for name in ("b/train-2.jsonl", "a/train-1.jsonl", "train-0.jsonl", "test.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"prompt": name}) + "\n")

    def prompts(pattern):
        return [row.values["prompt"] for row in read_rows(f"{tmp_path}/{pattern}")]

    assert prompts("train-*.jsonl") == ["train-0.jsonl"]
    assert prompts("**/train-*.jsonl") == ["a/train-1.jsonl", "b/train-2.jsonl", "train-0.jsonl"]
    assert prompts("[ab]/*.jsonl") == ["a/train-1.jsonl", "b/train-2.jsonl"]
    with pytest.raises(DataError) as caught:
        read_rows(f"{tmp_path}/a/valid-*.jsonl")
    assert f"found none in {tmp_path / 'a'}" in str(caught.value)


def test_a_name_with_a_bracket_is_a_file_where_there_is_one(tmp_path):
    path = tmp_path / "rows[1].jsonl"
    path.write_text('{"prompt": "a"}\n')
    assert len(read_rows(str(path))) == 1


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="found a pipe, a socket or a device"):
        read_rows(str(tmp_path / "rows.jsonl"))


def test_the_home_of_nobody_is_a_path_that_is_not_there():
    with pytest.raises(DataError, match="found nothing at ~nobody-of-this-name/rows"):
        read_rows("~nobody-of-this-name/rows.jsonl")


def test_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="found prompt more than once"):
        read_rows(str(tmp_path / "a.parquet"))


def test_files_of_a_folder_are_named_by_a_pattern(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError, match=r"Name a pattern .*\*\*/\*\.parquet"):
        read_rows(str(tmp_path))


def test_a_relative_path_names_the_folder_that_was_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_rows("train.jsonl")
    assert f"found nothing at train.jsonl (searched {tmp_path})" in str(caught.value)


def test_the_hub_is_asked_where_it_is_named_and_never_otherwise(monkeypatch, tmp_path):
    import datasets

    asked = []

    def load_dataset(name, config=None, *, split):
        asked.append((name, config, split))
        if name == "me/none":
            raise FileNotFoundError("no such data set\nand more")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is named hub:me/some"):
        read_rows("me/some")
    assert asked == []
    rows = read_rows("hub:me/some")
    assert [row.values for row in rows] == ROWS
    assert rows[1].where == "hub:me/some, row 1 (counted from 0)"
    read_rows("hub:me/some/main:test[:10%]")
    assert asked == [("me/some", None, "train"), ("me/some", "main", "test[:10%]")]
    with pytest.raises(DataError) as caught:
        read_rows("hub:me/none")
    assert "hub:me/none: expected a data set of the hub" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"expected hub:OWNER/NAME.*found hub:some"):
        read_rows("hub:some")


def test_long_and_many_names_of_columns_make_no_long_message(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"x" * 100_000: 1, **{f"c{i}": 1 for i in range(500)}}))
    columns = named_columns(column_names(read_rows(str(path))), {}, str(path))
    with pytest.raises(DataError, match=r"x{60}\.\.\., c0, .*, c18 and 481 more") as caught:
        detect_format(columns, "auto", str(path))
    assert len(str(caught.value)) < 1000
