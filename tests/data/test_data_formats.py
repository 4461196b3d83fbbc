from __future__ import annotations

import pytest

from tdistill.data.columns import choose_columns, detect_format, named_columns
from tdistill.data.config import Template
from tdistill.data.formats import Instruction, parse_records
from tdistill.data.readers import SourceRow
from tdistill.data.sources import column_names
from tdistill.errors import DataError

USER = {"role": "user", "content": "Who?"}
ASSISTANT = {"role": "assistant", "content": "He."}
SYSTEM = {"role": "system", "content": "Be brief."}


def parse(values, template: Template = "chat"):
    (record,) = parse_all(values, template)
    return record


def parse_all(values, template: Template = "chat", turns="last"):
    row = SourceRow("f:1", values)
    names = named_columns(column_names([row]), {}, "f")
    found = detect_format(names, "auto", "f")
    return parse_records(row, choose_columns(names, found, template, "f"), turns)


@pytest.mark.parametrize(
    ("values", "prompt", "references"),
    [
        ({"prompt": "Who?", "completion": " He."}, "Who?", (" He.",)),
        ({"prompt": "Who?"}, "Who?", ()),
        ({"prompt": [USER], "completion": [ASSISTANT]}, (USER,), ("He.",)),
        ({"messages": [SYSTEM, USER, ASSISTANT]}, (SYSTEM, USER), ("He.",)),
        ({"messages": [USER, ASSISTANT, USER]}, (USER, ASSISTANT, USER), ()),
        ({"messages": [USER]}, (USER,), ()),
        (
            {"instruction": "Add.", "input": "1 1", "output": "2"},
            Instruction("Add.", "1 1"),
            ("2",),
        ),
        (
            {"instruction": "Add.", "context": "1 1", "response": "2"},
            Instruction("Add.", "1 1"),
            ("2",),
        ),
        ({"instruction": "Add.", "output": ["2", "two", "2"]}, Instruction("Add."), ("2", "two")),
        ({"instruction": "Add.", "outputs": ["2", "two"]}, Instruction("Add."), ("2", "two")),
        ({"prompt": "Who?", "completion": "He.", "references": ["She."]}, "Who?", ("He.", "She.")),
        ({"messages": [USER], "references": "He."}, (USER,), ("He.",)),
    ],
)
def test_rows_of_every_format(values, prompt, references):
    record = parse(values)
    assert (record.prompt, record.references) == (prompt, references)


def test_null_fields_of_a_turn_are_dropped():
    record = parse({"messages": [{**USER, "tool_calls": None}, ASSISTANT]})
    assert record.prompt == (USER,)


def test_a_blank_response_is_no_reference_and_is_marked():
    blank = parse({"prompt": "Who?", "completion": " \n"})
    assert (blank.references, blank.blank_reference) == ((), True)
    missing = parse({"prompt": "Who?"})
    assert (missing.references, missing.blank_reference) == ((), False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": 3}, "column prompt: expected text; found a number"),
        ({"prompt": "a", "completion": {"x": 1}}, "column completion: expected text or a list"),
        ({"prompt": "a", "completion": ["b", 1]}, "found a list with a number"),
        ({"prompt": "a", "completion": [USER]}, "turns and one; found turns of user"),
        ({"prompt": [USER, ASSISTANT]}, "expected turns that end on a user turn"),
        ({"instruction": ["a"]}, "column instruction: expected text; found a list"),
        ({"instruction": "a", "context": True}, "column context: expected text; found true"),
        ({"messages": "a"}, "column messages: expected a list of objects"),
        ({"messages": [USER, "a"]}, "found text as turn 1"),
        (
            {"messages": [{"role": "user", "content": [1]}]},
            "found a number in the content of turn 0",
        ),
        ({"messages": [{"content": "a"}]}, "found null as role of turn 0"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "found the role narrator in turn 0"),
        ({"messages": [{"role": "user", "content": None}]}, "found null as content of turn 0"),
        ({"prompt": "a\ud800"}, "found half of a surrogate pair (U+D800) at character 1"),
        ({"messages": [USER, {"role": "gpt", "value": "\udc00"}]}, "half of a surrogate pair"),
        (
            {"prompt": "a", "tools": [{"type": "function"}]},
            "column tools: expected a list of tools",
        ),
        (
            {"prompt": "a", "tools": "no JSON"},
            "expected a list of tools, each an object with a name",
        ),
    ],
)
def test_wrong_types_are_refused_with_place_and_column(values, expected):
    with pytest.raises(DataError) as caught:
        parse(values)
    assert str(caught.value).startswith("f:1, column ")
    assert expected in str(caught.value)
