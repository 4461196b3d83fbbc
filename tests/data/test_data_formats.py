from __future__ import annotations

import pytest

from tdistill.data.config import Template
from tdistill.data.formats import (
    Instruction,
    choose_columns,
    detect_format,
    parse_record,
)
from tdistill.data.sources import SourceRow, column_names
from tdistill.errors import DataError

USER = {"role": "user", "content": "Who?"}
ASSISTANT = {"role": "assistant", "content": "He."}
SYSTEM = {"role": "system", "content": "Be brief."}


def parse(values, template: Template = "chat"):
    row = SourceRow("f:1", values)
    found = detect_format(column_names([row]), "auto", "f")
    return parse_record(row, choose_columns(column_names([row]), found, template, "f"))


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


def test_a_ready_made_prompt_next_to_instruction():
    columns = ("instruction", "prompt", "input", "output", "topic")
    assert detect_format(columns, "auto", "f") == "instruction"
    layout = choose_columns(columns, "instruction", "chat", "f")
    assert layout.ignored == ("prompt", "topic")
    assert "`prompt` is ignored" in layout.notes[0]
    plain = choose_columns(columns, "instruction", "plain", "f")
    assert plain.ignored == ("instruction", "input", "topic")
    values = {"instruction": "i", "prompt": "Rendered i", "input": "x", "output": "o"}
    record = parse(values, template="plain")
    assert (record.prompt, record.references) == ("Rendered i", ("o",))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("messages", "prompt", "completion"), "fit messages and prompt-completion"),
        (("messages", "prompt"), "data.format: messages (or prompt-completion)"),
        (("instruction", "completion"), "fit prompt-completion and instruction"),
        (("instruction", "messages"), "fit messages and instruction"),
        (("question", "answer"), "found the columns question, answer"),
        (("text",), "data.lm_text"),
        ((), "found the columns (none)"),
        (("completion",), "expected a column prompt for data.format: prompt-completion"),
    ],
)
def test_columns_that_need_a_guess_are_refused(columns, expected):
    with pytest.raises(DataError) as caught:
        detect_format(columns, "auto", "f")
    assert expected in str(caught.value)
    assert "instruction, input or context, output or response" in str(caught.value)


def test_the_named_format_settles_it():
    columns = ("messages", "prompt", "completion")
    assert detect_format(columns, "messages", "f") == "messages"
    assert choose_columns(columns, "messages", "chat", "f").ignored == ("prompt", "completion")
    with pytest.raises(DataError, match="expected a column instruction"):
        detect_format(columns, "instruction", "f")
    with pytest.raises(DataError, match=r"data\.lm_text"):
        detect_format(("text",), "text", "f")


def test_text_next_to_another_format_is_ignored():
    columns = ("instruction", "input", "output", "text")
    assert detect_format(columns, "auto", "f") == "instruction"
    assert choose_columns(columns, "instruction", "chat", "f").ignored == ("text",)


@pytest.mark.parametrize("pair", [("input", "context"), ("output", "response")])
def test_two_columns_of_one_role_are_refused(pair):
    with pytest.raises(DataError, match=" and ".join(pair)):
        choose_columns(("instruction", *pair), "instruction", "chat", "f")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": 3}, "column prompt: expected text; found a number"),
        ({"prompt": "a", "completion": {"x": 1}}, "column completion: expected text or a list"),
        ({"prompt": "a", "completion": ["b", 1]}, "found a list with a number"),
        ({"prompt": "a", "completion": [USER]}, "expected one assistant turn; found turns of user"),
        ({"prompt": [USER, ASSISTANT]}, "expected turns that end on a user turn"),
        ({"instruction": ["a"]}, "column instruction: expected text; found a list"),
        ({"instruction": "a", "context": True}, "column context: expected text; found true"),
        ({"messages": "a"}, "column messages: expected a list of objects"),
        ({"messages": [USER, "a"]}, "found text as turn 1"),
        ({"messages": [{"role": "user", "content": [1]}]}, "found a list as content of turn 0"),
        ({"messages": [{"from": "user", "value": "a"}]}, "found null as role of turn 0"),
    ],
)
def test_wrong_types_are_refused_with_place_and_column(values, expected):
    with pytest.raises(DataError) as caught:
        parse(values)
    assert str(caught.value).startswith("f:1, column ")
    assert expected in str(caught.value)
