"""Every row on docs/data.md gives the prompt and the responses that the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from chat_templates import HYBRID, thinking

from tdistill.data import DataConfig, load_examples, load_text_chunks
from tdistill.data.columns import ROLES
from tdistill.data.messages import REASONING_NAMES, ROLE_NAMES
from tdistill.data.readers import ROW_SUFFIXES
from tdistill.data.sources import read_rows
from tdistill.data.thinking import TAGS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
TOKENIZER = thinking(HYBRID)
ASKED = "What is 2 + 2?"
BLOCKS = re.findall(r'```(\w+)(?: title="(.+?)")?\n(.+?)\n```', PAGE, re.DOTALL)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>'

# Of every row on the page, by its place: what differs from one question whose answer is 4.
OTHERS: dict[int, list[tuple[str, str]]] = {
    1: [(ASKED, "")],
    8: [("Add the numbers.\n2 and 2", "4")],
    10: [("What is added?\n2 + 2", "2 and 2")],
    12: [(ASKED, "")],
    16: [(ASKED, "4"), ("And 3 + 3?", "6")],
    17: [("And 3 + 3?", "")],
    20: [(ASKED, CALL)],
    22: [(ASKED, CALL)],
    23: [(ASKED, CALL)],
}


def settings_before() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row of the page with the section `data` in the block before it, if there is one."""
    found, data = [], {}
    for language, title, text in BLOCKS:
        if language == "yaml":
            data = yaml.safe_load(text)["data"]
        elif language == "json" and not title:
            found.append((json.loads(text), data))
            data = {}
    return found


def answers(row: dict[str, Any], data: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Question and answer, without its think block, of what a row gives."""
    path = folder / "row.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    config = DataConfig(max_prompt_tokens=2000, **data)
    examples, report = load_examples(str(path), TOKENIZER, config)
    assert not report.faults
    texts = [TOKENIZER.decode(list(e.reference_ids)).removesuffix("<|im_end|>") for e in examples]
    said = [text.rpartition("</think>")[2].strip() for text in texts]
    return list(zip([e.question for e in examples], said, strict=True))


def test_every_row_of_the_page_is_read_as_it_says(tmp_path: Path) -> None:
    rows = settings_before()
    assert len(rows) == 26
    found = [answers(row, data, tmp_path) for row, data in rows]
    assert found == [OTHERS.get(i, [(ASKED, "4")]) for i in range(len(rows))]


def test_every_kind_of_file_has_the_same_row(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    named = {title: text for _, title, text in BLOCKS if title}
    for title, text in named.items():
        Path(title).write_text(text, encoding="utf-8")
    exec(named["save.py"], {})
    for source in ("sums.json", "sums.csv", "sums.tsv", "sums.parquet", "saved/train", "s*.json"):
        (row,) = read_rows(source)
        assert row.values == {"prompt": ASKED, "completion": "4"}, source
    text = "".join(TOKENIZER.decode(c) for c in load_text_chunks("texts.jsonl", TOKENIZER, 1))
    assert text == "Two and two are four.<|endoftext|>"


def test_the_page_has_every_name_that_is_understood() -> None:
    columns = {n for roles in ROLES.values() for gs in roles.values() for g in gs for n in g}
    tags = {opening for opening, _ in TAGS}
    known = columns | tags | {*ROLE_NAMES, *REASONING_NAMES, *ROW_SUFFIXES}
    shown = {*re.findall(r"`([^`\n]+)`", PAGE), *re.findall(r'"(\w+)":', PAGE)}
    assert known - shown == set()
