"""Whatever is in a file: rows, or one of the library's errors in one short line, at once."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from chat_templates import HYBRID, thinking
from hypothesis import HealthCheck, example, given, settings
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
LIGHT = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
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
        whole = TOKENIZER.decode([*made.prompt_ids, *made.reference_ids])
        assert "PROBE" not in whole
    json.dumps(report.as_dict())
    assert report.text()


@LIGHT
@given(
    st.lists(ROWS, max_size=3), st.sampled_from(["last", "all"]), st.sampled_from(["chat", "plain"])
)
@example([{"messages": [{"role": "assistant", "content": "a"}]}], "all", "chat")
@example([{"messages": []}, {"messages": [{"role": "system", "content": "a"}]}], "last", "chat")
def test_any_rows(rows, turns, template):
    lines = "\n".join(json.dumps(row) for row in rows)
    load("a.jsonl", lines.encode(), trained_turns=turns, template=template)


@LIGHT
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"]),
)
@example(b'{"prompt": "a"}\n\x80', "a.jsonl")
@example(b'[{"prompt": ' + b"[" * 2000, "a.json")
@example(b'prompt,prompt\n"a\x00",b\n', "a.csv")
def test_any_bytes(content, name):
    load(name, content)


@LIGHT
@given(
    st.lists(st.tuples(st.sampled_from(ROLES[:4]), TEXTS), min_size=1, max_size=5), st.booleans()
)
def test_any_talk(turns, thinks):
    messages = [{"role": role, "content": text} for role, text in turns]
    content = json.dumps({"messages": messages}).encode()
    variables = {} if thinks else {"enable_thinking": False}
    load("a.jsonl", content, template_kwargs=variables, trained_turns="all")
