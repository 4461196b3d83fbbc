"""Turns that call tools: trained on as the template writes them, or counted; never without."""

from __future__ import annotations

import json

import pytest
from chat_templates import HYBRID, thinking
from data_tokenizers import CHATML

from tdistill.data import DataConfig, load_examples
from tdistill.errors import DataError

USER = {"role": "user", "content": "Weather?"}
ARGUMENTS = {"city": "Paris", "days": 2}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": ARGUMENTS}}
AS_TEXT = {**CALL, "function": {"name": "look", "arguments": json.dumps(ARGUMENTS)}}
FLAT = {"name": "look", "arguments": ARGUMENTS}
TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {}}}
WRITTEN = '<tool_call>\n{"name": "look", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
TRAINED = f"<think>\n\n</think>\n\n{WRITTEN}<|im_end|>"

# Takes arguments as text alone, and only where a turn has no content, as some templates do.
TEXTUAL = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "{{ call.function.name + ': ' + call.function.arguments }}{% endfor %}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Writes the first of several calls.
FIRST_ALONE = TEXTUAL.replace("in message.tool_calls %}{{", "in message.tool_calls[:1] %}{{")
# Refuses several calls.
ONE_AT_MOST = TEXTUAL.replace(
    "{% if message.tool_calls %}",
    "{% if message.tool_calls and message.tool_calls | length > 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}{% if message.tool_calls %}",
)


def assistant(**fields):
    return {"role": "assistant", **fields}


@pytest.fixture
def load(tmp_path):
    def load_rows(template, *conversations, tools=None, **options):
        path = tmp_path / "rows.jsonl"
        more = {} if tools is None else {"tools": tools}
        rows = [{"messages": list(turns), **more} for turns in conversations]
        path.write_text("\n".join(map(json.dumps, rows)))
        tokenizer = thinking(template)
        config = DataConfig(max_prompt_tokens=2000, max_response_tokens=500)
        examples, report = load_examples(str(path), tokenizer, config, **options)
        texts = [tokenizer.decode(list(e.reference_ids)) for e in examples]
        return examples, report, texts

    return load_rows


@pytest.mark.parametrize(
    "turn",
    [
        assistant(content=None, tool_calls=[CALL]),
        assistant(tool_calls=[CALL]),
        assistant(content="", tool_calls=[AS_TEXT]),
        assistant(content=None, tool_calls=[FLAT]),
        assistant(content=None, tool_calls=json.dumps([CALL])),
        assistant(content=None, function_call=FLAT),
        {"from": "function_call", "value": json.dumps(FLAT)},
    ],
)
def test_every_form_of_a_call_is_trained_on_as_the_template_writes_it(load, turn):
    (example,), report, texts = load(HYBRID, [USER, turn])
    assert texts == [TRAINED]
    assert example.reference_ended
    assert (report.boundary_checked, report.boundary_equal) == (1, 1)
    assert '{"name": "look"' in example.references[0]


def test_text_beside_a_call_is_trained_on_too(load):
    _, report, texts = load(HYBRID, [USER, assistant(content="I look.", tool_calls=[CALL, CALL])])
    assert texts == [f"<think>\n\n</think>\n\nI look.{WRITTEN}{WRITTEN}<|im_end|>"]
    assert report.lost == {}


def test_arguments_are_given_in_the_form_that_the_template_takes(load):
    for call in (CALL, AS_TEXT):
        _, report, texts = load(TEXTUAL, [USER, assistant(content=None, tool_calls=[call])])
        assert texts == ['look: {"city": "Paris", "days": 2}<|im_end|>']
        assert report.faults == {}


def test_text_that_the_template_leaves_out_beside_a_call_is_said(load):
    _, report, texts = load(TEXTUAL, [USER, assistant(content="I look.", tool_calls=[CALL])])
    assert texts == ['look: {"city": "Paris", "days": 2}<|im_end|>']
    assert report.lost == {"content": 1}
    assert "content of 1 rows: the template does not write it" in report.text()


@pytest.mark.parametrize(
    ("template", "calls", "reason"),
    [
        (CHATML, [CALL], "the chat template leaves out a tool call"),
        (FIRST_ALONE, [CALL, CALL], "the chat template leaves out a tool call"),
        (
            ONE_AT_MOST,
            [CALL, CALL],
            "the chat template refuses the response (one call at a time)",
        ),
    ],
)
def test_calls_that_the_template_cannot_write_are_counted_not_trained_without(
    load, template, calls, reason
):
    # The name and the arguments stand in the text as well, so that they seem to be written.
    text = "I look Paris 2 days up: look."
    turns = [USER, assistant(content=text, tool_calls=calls)]
    (example,), report, texts = load(template, turns)
    assert texts == [""]
    assert report.faults == {reason: 1}
    assert example.references[0].startswith(text)
    with pytest.raises(DataError, match="and 1 with a fault"):
        load(template, turns, require_references=True)


def test_a_call_that_the_prompt_lacks_leaves_the_row_out(load):
    result = {"role": "tool", "content": "sunny", "tool_call_id": "c1"}
    turns = [USER, assistant(content="x", tool_calls=[CALL]), result, assistant(content="Sunny.")]
    plain = [USER, assistant(content="Hello.")]
    examples, report, _ = load(CHATML, turns, *[plain] * 30)
    assert len(examples) == 30
    assert report.faults == {"the chat template leaves out a tool call, in the prompt": 1}
    assert report.refused_rows == 1
    with pytest.raises(DataError, match="found 1 of 11 that it cannot: 1 the chat template"):
        load(CHATML, turns, *[plain] * 10)


@pytest.mark.parametrize("role", ["tool", "function", "ipython", "observation"])
def test_results_of_tools_are_prompt(load, role):
    result = {"role": role, "content": "sunny"}
    turns = [USER, assistant(content=None, tool_calls=[CALL]), result, assistant(content="Sunny.")]
    (example,), _, texts = load(HYBRID, turns)
    assert texts == ["<think>\n\n</think>\n\nSunny.<|im_end|>"]
    assert WRITTEN in example.prompt
    assert "<|im_start|>tool\nsunny<|im_end|>" in example.prompt


def test_a_result_that_the_template_leaves_out_is_a_fault(load):
    template = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}"
    )
    plain = [USER, assistant(content="Hello.")]
    # The question holds the text of the result as well, so that it seems to be written.
    asked = {"role": "user", "content": "sunny?"}
    turns = [asked, {"role": "tool", "content": "sunny"}, assistant(content="Sunny.")]
    _, report, _ = load(template, turns, *[plain] * 30)
    reason = "the chat template leaves out the result of a tool, in the prompt"
    assert report.faults == {reason: 1}


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], [json.dumps(TOOL)]]
)
def test_tools_reach_the_template(load, tools):
    (example,), report, _ = load(HYBRID, [USER, assistant(content="No.")], tools=tools)
    assert json.dumps(TOOL) in example.prompt
    assert example.tools == (TOOL,)
    assert report.lost == {}


@pytest.mark.parametrize("tools", [[], "", "[]"])
def test_no_tools_are_no_tools(load, tools):
    (example,), _, _ = load(HYBRID, [USER, assistant(content="No.")], tools=tools)
    assert example.tools == ()


def test_tools_that_the_template_does_not_write_are_said(load):
    _, report, _ = load(CHATML, [USER, assistant(content="No.")], tools=[TOOL])
    assert report.lost == {"tools": 1}


def test_a_special_token_inside_an_argument_is_a_fault(load):
    spelt = {"name": "look", "arguments": {"city": "<|im_start|>"}}
    _, report, texts = load(HYBRID, [USER, assistant(content=None, tool_calls=[spelt])])
    assert texts == [""]
    assert next(iter(report.faults)).startswith("reasoning or a tool call spells a special token")


def test_arguments_that_parquet_filled_with_nulls_are_not_given_to_the_template(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    calls = [{"function": {"name": "a", "arguments": {"x": 1}}, "type": "function"}]
    other = [{"function": {"name": "b", "arguments": {"y": "z"}}, "type": "function"}]
    rows = [{"messages": [USER, assistant(content=None, tool_calls=c)]} for c in (calls, other)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    tokenizer = thinking(HYBRID)
    examples, _ = load_examples(str(tmp_path / "rows.parquet"), tokenizer, DataConfig())
    texts = [tokenizer.decode(list(e.reference_ids)) for e in examples]
    assert '"arguments": {"x": 1}}' in texts[0]
    assert '"arguments": {"y": "z"}}' in texts[1]
