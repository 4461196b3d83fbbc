"""Whatever is in a file: rows, or one of the library's errors in one short line, at once."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from chat_templates import HYBRID, thinking
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdistill.data import DataConfig, load_examples
from tdistill.errors import TdistillError

TOKENIZER = thinking(HYBRID)
COLUMNS = (
    "prompt", "completion", "response", "messages", "conversations", "instruction", "input",
    "output", "references", "system", "tools", "text", "other",
)  # fmt: skip
ROLES = ("user", "assistant", "system", "tool", "human", "gpt", "function_call", "narrator", "")
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "<think>", "</think>", "<think>a</think>b", "<|im_end|>", "a<|im_end|>b",
         "\ud800", '{"name": "f", "arguments": "{}"}', "[[", "{{ 1 }}", "<tool_call>"]
    ),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FUNCTIONS = st.fixed_dictionaries({}, optional={"name": TEXTS, "arguments": VALUES})
CALLS = st.lists(FUNCTIONS | st.fixed_dictionaries({"function": FUNCTIONS}) | VALUES, max_size=2)
TURNS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(ROLES),
        "content": TEXTS | VALUES,
        "from": st.sampled_from(ROLES),
        "value": TEXTS,
        "tool_calls": CALLS,
        "reasoning": TEXTS,
        "weight": st.integers(0, 1),
    },
)
ROWS = st.dictionaries(
    st.sampled_from(COLUMNS), TEXTS | st.lists(TURNS, max_size=4) | CALLS | VALUES, max_size=4
)


def load(name: str, content: bytes, **config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            examples, report = load_examples(str(path), TOKENIZER, DataConfig(**config))
        except TdistillError as error:
            text = str(error)
            assert len(text.splitlines()) <= 3
            assert len(text) < 2000
            assert "Traceback" not in text
            assert " object at 0x" not in text
            return
    end = report.end_id
    for made in examples:
        assert end not in made.reference_ids[:-1]
        assert made.reference_ended == (made.reference_ids[-1:] == (end,))
    json.dumps(report.as_dict())
    assert report.text()


def load_rows(rows, turns, template):
    lines = "\n".join(json.dumps(row) for row in rows)
    load("a.jsonl", lines.encode(), trained_turns=turns, template=template)


def load_bytes(content, name):
    load(name, content)


def load_talk(turns, thinks):
    messages = [{"role": role, "content": text} for role, text in turns]
    content = json.dumps({"messages": messages}).encode()
    variables = {} if thinks else {"enable_thinking": False}
    load("a.jsonl", content, template_kwargs=variables, trained_turns="all")


BYTES = st.binary(max_size=60) | st.text(max_size=60).map(str.encode)
FILES = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"]
TALK = st.lists(st.tuples(st.sampled_from(ROLES[:4]), TEXTS), min_size=1, max_size=5)
CHOICES = st.sampled_from(["last", "all"]), st.sampled_from(["chat", "plain"])
LOADED = {
    load_rows: (st.lists(ROWS, max_size=3), *CHOICES),
    load_bytes: (BYTES, st.sampled_from(FILES)),
    load_talk: (TALK, st.booleans()),
}


def search(check, **options):
    """Look for a file on which a check fails."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    found = settings(deadline=None, database=None, suppress_health_check=slow, **options)
    found(given(*LOADED[check])(check))()


@pytest.mark.parametrize("check", LOADED)
def test_any_file(check):
    search(check, max_examples=80, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("check", LOADED)
def test_any_of_many_files(check):
    search(check, max_examples=2000)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n\x80'),
        ("a.json", b'[{"prompt": ' + b"[" * 2000),
        ("a.csv", b'prompt,prompt\n"a\x00",b\n'),
        ("a.jsonl", b'{"messages": [{"role": "assistant", "content": "a"}]}'),
        ("a.jsonl", b'{"messages": []}\n{"messages": [{"role": "system", "content": "a"}]}'),
    ],
)
def test_files_that_were_found(name, content):
    load(name, content, trained_turns="all")
