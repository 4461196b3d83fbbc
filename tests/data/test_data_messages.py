"""Turns in the shapes that sources give them, and which of them are trained on."""

from __future__ import annotations

import json

import pytest
from data_tokenizers import CHATML, byte_level
from test_data_formats import parse, parse_all

from tdistill.data import DataConfig, load_examples
from tdistill.data.messages import ROLE_NAMES, TurnError, read_messages, read_tools

USER = {"role": "user", "content": "Who?"}
ASSISTANT = {"role": "assistant", "content": "He."}


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "He."}],
        [{"role": "human", "content": "Who?"}, {"role": "model", "content": "He."}],
        [{"role": "User", "content": "Who?"}, {"role": " ASSISTANT", "content": "He."}],
        [
            {"role": "user", "content": [{"type": "text", "text": "Who"}, {"text": "?"}]},
            {"role": "assistant", "content": ["He."]},
        ],
        [{**USER, "tool_calls": None, "name": None}, {**ASSISTANT, "reasoning": None}],
        json.dumps([USER, ASSISTANT]),
    ],
)
@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
def test_every_shape_gives_the_same_turns(turns, column):
    record = parse({column: turns})
    assert (record.prompt, record.references) == ((USER,), ("He.",))


def test_every_known_role_is_one_of_five():
    for name in ROLE_NAMES:
        value = json.dumps({"name": "f"}) if name == "function_call" else "x"
        (turn,) = read_messages([{"role": name, "content": value}])
        assert turn["role"] in ("system", "developer", "user", "assistant", "tool")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name(name):
    (_, turn) = read_messages([USER, {**ASSISTANT, name: "Since."}])
    assert turn == {**ASSISTANT, "reasoning_content": "Since."}


@pytest.mark.parametrize(
    ("turn", "found"),
    [
        ({"role": "narrator", "content": "a"}, "the role narrator in turn 0"),
        ({"role": 3, "content": "a"}, "a number as role of turn 0"),
        ({"role": "user", "content": {"a": 1}}, "an object as content of turn 0"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            "a part of type image_url in the content of turn 0",
        ),
        ({"role": "assistant"}, "null as content of turn 0"),
        ({**ASSISTANT, "reasoning": ["a"]}, "a list in turn 0"),
        ({**ASSISTANT, "tool_calls": 3}, "a number in turn 0"),
        ({**ASSISTANT, "tool_calls": [{"function": {}}]}, "one without in turn 0"),
        ({**ASSISTANT, "tool_calls": ["look"]}, "one without in turn 0"),
        (
            {**ASSISTANT, "tool_calls": [{"name": "a", "arguments": "{oops"}]},
            "text in turn 0",
        ),
        ({**ASSISTANT, "tool_calls": [{"name": "a", "arguments": [1]}]}, "a list in turn 0"),
    ],
)
def test_other_shapes_are_refused_by_name(turn, found):
    with pytest.raises(TurnError) as caught:
        read_messages([turn])
    assert caught.value.found == found


def test_the_result_of_a_tool_may_be_an_object():
    (turn,) = read_messages([{"role": "tool", "content": {"sky": "blue"}}])
    assert turn["content"] == '{"sky": "blue"}'


def test_a_turn_of_the_assistant_may_be_empty():
    assert parse({"messages": [USER, {"role": "assistant", "content": None}]}).blank_reference


@pytest.mark.parametrize("tools", [3, [3], [{"function": {}}], "look"])
def test_other_tools_are_refused(tools):
    with pytest.raises(TurnError):
        read_tools(tools)


TALK = [
    USER,
    ASSISTANT,
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "I."},
]


def test_the_last_turn_is_trained_on_or_all_are_each_after_what_precedes_it():
    last = parse({"messages": TALK})
    assert (last.prompt, last.references) == (tuple(TALK[:3]), ("I.",))
    first, second = parse_all({"messages": TALK, "references": ["You."]}, turns="all")
    assert (first.prompt, first.references) == ((USER,), ("He.",))
    assert (second.prompt, second.references) == (tuple(TALK[:3]), ("I.", "You."))


def test_a_talk_that_ends_with_a_question_is_a_prompt_after_its_answers():
    records = parse_all({"messages": TALK[:3]}, turns="all")
    assert [record.references for record in records] == [("He.",), ()]
    (record,) = parse_all({"messages": TALK[:3]})
    assert (record.prompt, record.references) == (tuple(TALK[:3]), ())


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"loss": False}, {"weight": 0.0}]
)
@pytest.mark.parametrize(("turns", "references"), [("last", [()]), ("all", [("He.",)])])
def test_turns_of_no_weight_are_not_trained_on(turns, references, mark):
    marked = parse({"messages": [*TALK[:3], {**TALK[3], "train": True, "weight": 1}]})
    assert marked.references[0]["content"] == "I."
    talk = [*TALK[:3], {**TALK[3], **mark}]
    assert [r.references for r in parse_all({"messages": talk}, turns=turns)] == references


def test_every_turn_is_an_example_under_the_prompt_that_its_model_would_see(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": TALK}))
    tokenizer = byte_level(CHATML)
    (only,), report = load_examples(str(path), tokenizer, DataConfig())
    assert (report.trained_turns, report.earlier_turns) == ("last", 1)
    assert "turns       the last of the assistant's trained on; 1 in prompts alone" in report.text()
    config = DataConfig(trained_turns="all")
    (first, second), report = load_examples(str(path), tokenizer, config)
    assert second.prompt_ids == only.prompt_ids
    answered = (*first.prompt_ids, *first.reference_ids)
    assert second.prompt_ids[: len(answered)] == answered
    assert (report.rows_read, report.rows_kept, report.boundary_equal) == (1, 2, 2)
    assert "turns       all of the assistant's trained on; 0 in prompts alone" in report.text()


def test_a_system_column_is_the_system_message_unless_a_turn_is():
    own = parse({"conversations": [USER, ASSISTANT], "system": "Be brief."})
    assert own.system == "Be brief."
    assert parse({"instruction": "a", "output": "b", "system": ""}).system is None


def test_a_preference_may_repeat_its_prompt():
    for chosen in ([ASSISTANT], [USER, ASSISTANT]):
        record = parse({"prompt": "Who?", "chosen": chosen, "rejected": [USER, ASSISTANT]})
        assert (record.prompt, record.references) == ("Who?", ("He.",))
