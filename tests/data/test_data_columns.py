from __future__ import annotations

import pytest
from test_data_formats import parse

from tdistill.data.columns import choose_columns, detect_format, named_columns
from tdistill.errors import DataError


def names(columns, mapping=None):
    return named_columns(tuple(columns), mapping or {}, "f")


def test_a_ready_made_prompt_next_to_instruction():
    columns = ("instruction", "prompt", "input", "output", "topic")
    assert detect_format(names(columns), "auto", "f") == "instruction"
    layout = choose_columns(names(columns), "instruction", "chat", "f")
    assert layout.ignored == ("prompt", "topic")
    assert "`prompt` is ignored" in layout.notes[0]
    plain = choose_columns(names(columns), "instruction", "plain", "f")
    assert plain.ignored == ("instruction", "input", "topic")
    values = {"instruction": "i", "prompt": "Rendered i", "input": "x", "output": "o"}
    record = parse(values, template="plain")
    assert (record.prompt, record.references) == ("Rendered i", ("o",))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("messages", "prompt", "completion"), "fit messages and prompt-completion"),
        (("messages", "prompt"), "data.format: messages (or prompt-completion)"),
        (("instruction", "messages"), "fit messages and instruction"),
        (("query", "reply"), "found the columns query, reply"),
        (("query", "reply"), "data.columns: {prompt: COLUMN, response: COLUMN}"),
        (("conversations", "prompt"), "fit messages and prompt-completion"),
        (("text",), "data.lm_text"),
        ((), "found the columns (none)"),
        (("completion",), "expected a column prompt for data.format: prompt-completion"),
    ],
)
def test_columns_that_need_a_guess_are_refused(columns, expected):
    with pytest.raises(DataError) as caught:
        detect_format(names(columns), "auto", "f")
    assert expected in str(caught.value)
    assert "input or context, output or response" in str(caught.value)


def test_the_named_format_settles_it():
    columns = ("messages", "prompt", "completion")
    assert detect_format(names(columns), "messages", "f") == "messages"
    assert choose_columns(names(columns), "messages", "chat", "f").ignored == (
        "prompt",
        "completion",
    )
    with pytest.raises(DataError, match="expected a column instruction"):
        detect_format(names(columns), "instruction", "f")
    with pytest.raises(DataError, match=r"data\.lm_text"):
        detect_format(names(["text"]), "text", "f")


def test_text_next_to_another_format_is_ignored():
    columns = ("instruction", "input", "output", "text")
    assert detect_format(names(columns), "auto", "f") == "instruction"
    assert choose_columns(names(columns), "instruction", "chat", "f").ignored == ("text",)


@pytest.mark.parametrize("pair", [("input", "context"), ("output", "response")])
def test_two_columns_of_one_role_are_refused(pair):
    with pytest.raises(DataError, match=" and ".join(pair)):
        choose_columns(names(["instruction", *pair]), "instruction", "chat", "f")


@pytest.mark.parametrize(
    ("columns", "format", "roles"),
    [
        (
            ("prompt", "response"),
            "prompt-completion",
            {"prompt": "prompt", "completion": "response"},
        ),
        (("prompt", "answer"), "prompt-completion", {"prompt": "prompt", "completion": "answer"}),
        (
            ("prompt", "chosen", "rejected"),
            "prompt-completion",
            {"prompt": "prompt", "completion": "chosen"},
        ),
        # The format's own name wins over a name that other formats give a response.
        (
            ("prompt", "completion", "answer"),
            "prompt-completion",
            {"prompt": "prompt", "completion": "completion"},
        ),
        (("question", "answer"), "instruction", {"instruction": "question", "output": "answer"}),
        (
            ("question", "context", "answer"),
            "instruction",
            {"instruction": "question", "input": "context", "output": "answer"},
        ),
        (
            ("instruction", "completion"),
            "instruction",
            {"instruction": "instruction", "output": "completion"},
        ),
        (
            ("conversations", "system", "tools", "id"),
            "messages",
            {"messages": "conversations", "system": "system", "tools": "tools"},
        ),
    ],
)
def test_names_that_people_give_columns_are_understood(columns, format, roles):
    assert detect_format(names(columns), "auto", "f") == format
    assert choose_columns(names(columns), format, "chat", "f").roles == roles


def test_two_other_names_of_the_response_are_refused():
    found = names(["prompt", "response", "answer"])
    with pytest.raises(DataError, match=r"response and answer\. Name one \(data\.columns: \{comp"):
        choose_columns(found, "prompt-completion", "chat", "f")


def test_a_mapping_names_the_columns_and_hides_others_of_that_name():
    found = names(["query", "response", "answer"], {"prompt": "query", "response": "answer"})
    assert detect_format(found, "auto", "f") == "prompt-completion"
    chosen = choose_columns(found, "prompt-completion", "chat", "f")
    assert chosen.roles == {"prompt": "query", "completion": "answer"}


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"prmpt": "query"}, "found prmpt (nearest: prompt)"),
        ({"prompt": "qery"}, "expected the column qery that data.columns names for prompt"),
        ({"prompt": "query", "response": "query"}, "found query for several"),
        ({"prompt": "qery"}, "found the columns query, reply (nearest: query)"),
    ],
)
def test_a_wrong_mapping_is_refused_with_the_nearest_name(mapping, expected):
    with pytest.raises(DataError) as caught:
        names(["query", "reply"], mapping)
    assert expected in str(caught.value)


def test_a_source_that_needs_no_mapping_is_read_beside_one_that_does():
    mapping = {"prompt": "query", "response": "answer"}
    for columns in (["prompt", "response"], ["prompt", "completion", "other"]):
        assert names(columns, mapping) == {name: name for name in columns}
    with pytest.raises(DataError, match="expected the column query"):
        names(["question", "answer"], mapping)
