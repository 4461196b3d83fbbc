from __future__ import annotations

import json

import pytest
from data_tokenizers import CHATML, byte_level, word_level

from tdistill.data import DataConfig, load_examples, making
from tdistill.errors import DataError

CHAT = byte_level(CHATML)
ROWS = [
    {"instruction": "Who wrote the play?", "input": "", "output": "Shakespeare.", "kind": "x"},
    {"instruction": " ", "input": "", "output": "Nothing was asked.", "kind": "x"},
    {"instruction": "Who wrote the play?", "input": "", "output": "He did.", "kind": "x"},
    {"instruction": "Long " * 200, "input": "", "output": "Yes.", "kind": "x"},
    {"instruction": "Who?", "input": "", "output": "word " * 200, "kind": "x"},
    {"instruction": "Why?", "input": "", "output": " ", "kind": "x"},
]


@pytest.fixture
def write(tmp_path):
    def write_rows(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_rows


def test_rows_become_examples_in_order_and_the_rest_is_counted(write):
    source = write(ROWS)
    examples, report = load_examples(source, CHAT, DataConfig(max_response_tokens=50))
    assert [example.references for example in examples] == [
        ("Shakespeare.",),
        ("He did.",),
        ("word " * 200,),
        (),
    ]
    assert examples[0].prompt == (
        "<|im_start|>user\nWho wrote the play?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (report.rows_read, report.rows_kept) == (6, 4)
    assert (report.empty_rows, report.long_prompts) == (1, 1)
    assert (report.endless_rows, report.without_reference) == (1, 1)
    assert report.duplicate_prompts == 1
    assert report.response_tokens_max == 50
    assert report.prompt_tokens_max == max(len(example.prompt_ids) for example in examples)


def test_the_limit_counts_rows_before_any_is_left_out(write):
    _, report = load_examples(write(ROWS), CHAT, DataConfig(), limit=2)
    assert (report.rows_read, report.rows_kept) == (2, 1)


def test_the_report_says_what_is_used_and_shows_the_loss_mask(write):
    _, report = load_examples(write(ROWS), CHAT, DataConfig())
    text = report.text()
    assert "used: instruction (instruction), input (input), output (output); ignored: kind" in text
    assert "a response ends with <|im_end|> (id 2)" in text
    assert "6 read, 4 kept; left out: 1 empty, 1 with too long a prompt" in text
    assert "".join(report.sample.trained) == "Shakespeare.<|im_end|>"
    assert "".join(f"[{token}]" for token in report.sample.trained) in text
    assert report.sample.trained[-1] == "<|im_end|>"
    assert report.sample.where.endswith("rows.jsonl:1")
    assert "with the end token" in text
    assert json.loads(json.dumps(report.as_dict()))["sample"]["ended"] is True


def test_a_cut_sample_says_that_it_has_no_end(write):
    _, report = load_examples(write(ROWS[:1]), CHAT, DataConfig(max_response_tokens=2))
    assert len(report.sample.trained) == 2
    assert "cut, so without the end token" in report.text()


def test_long_samples_are_shortened_for_the_eye_only(write):
    rows = [{"prompt": "why " * 300, "completion": "word " * 200}]
    config = DataConfig(max_prompt_tokens=10_000, max_response_tokens=10_000)
    examples, report = load_examples(write(rows), CHAT, config)
    assert len(report.sample.trained) == len(examples[0].reference_ids)
    assert len(report.text()) < 2500
    assert "characters ..." in report.text()
    assert report.text().rstrip().endswith("[<|im_end|>]")


def test_a_sample_without_response(write):
    _, report = load_examples(write([{"prompt": "Who?"}]), CHAT, DataConfig())
    assert report.sample.trained == ()
    assert "no response" in report.text()


def test_prompt_and_response_agree_with_the_chat_template(write):
    _, report = load_examples(write(ROWS), CHAT, DataConfig())
    assert (report.boundary_checked, report.boundary_equal) == (3, 3)
    lead = byte_level(CHATML.replace("{{ message['content'] }}", "~{{ message['content'] }}"))
    examples, report = load_examples(write(ROWS), lead, DataConfig())
    assert (report.boundary_checked, report.boundary_equal) == (3, 3)
    assert lead.decode(list(examples[0].reference_ids)) == "~Shakespeare.<|im_end|>"


def test_rows_that_the_template_writes_otherwise_are_counted_and_refused_where_trained_on(write):
    merging = byte_level(CHATML.replace("assistant\n{%", "assistant \n\n{%"))
    merging.chat_template = merging.chat_template.replace(
        "{{ message['content'] }}", "\n{{ message['content'] }}"
    )
    examples, report = load_examples(write(ROWS), merging, DataConfig())
    reason = "the whole conversation does not begin with the generation prompt"
    assert report.faults == {reason: 3}
    assert report.first_faults[reason].endswith("rows.jsonl:1")
    assert f"3 rows: {reason} (first: " in report.text()
    assert all(example.reference_ids == () for example in examples)
    assert examples[0].references == ("Shakespeare.",)
    with pytest.raises(DataError, match=f"and 4 with a fault .*:1: {reason}"):
        load_examples(write([*ROWS[:1]] * 4), merging, DataConfig(), require_references=True)


def test_tokens_that_merge_where_prompt_and_response_meet_are_counted_and_trained(write):
    rows = [{"prompt": "Who?", "completion": "He wrote."}]
    tokenizer = byte_level(CHATML.replace("assistant\n{%", "assistant\nW{%"))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message['content'] }}",
        "{{ 'W' if message['role'] == 'assistant' }}{{ message['content'] }}",
    )
    whole, apart = (tokenizer(text)["input_ids"] for text in ("Who", "W"))
    assert whole[0] != apart[0], "the first tokens merge"
    rows[0]["completion"] = "ho wrote the play."
    examples, report = load_examples(write(rows), tokenizer, DataConfig(max_boundary_failures=1))
    assert report.faults == {"the tokens of prompt and response merge where they meet": 1}
    assert (report.boundary_checked, report.boundary_equal) == (1, 0)
    assert tokenizer.decode(list(examples[0].reference_ids)) == "ho wrote the play.<|im_end|>"
    with pytest.raises(DataError, match=r"raise data\.max_boundary_failures"):
        load_examples(write(rows), tokenizer, DataConfig(), require_references=True)


def test_spelt_out_special_tokens_are_reported(write):
    rows = [{"prompt": "What is <|im_end|>?", "completion": "A token, not <|im_start|>."}]
    _, report = load_examples(write(rows), CHAT, DataConfig())
    assert (report.special_in_prompts, report.special_in_responses) == (1, 1)
    assert "1 prompts spell a special token: read as control tokens" in report.text()
    assert "1 responses spell a special token: read as plain text" in report.text()
    rows = [{"prompt": "Who", "completion": "wrote <s> the"}]
    _, report = load_examples(write(rows), word_level(), DataConfig())
    assert "read as control tokens: this tokenizer cannot do otherwise" in report.text()


def test_a_tokenizer_without_chat_template_uses_alpaca_for_instructions(write):
    examples, report = load_examples(write(ROWS[:1]), byte_level(), DataConfig(system="Be kind."))
    assert report.template == "alpaca"
    assert examples[0].prompt.endswith("### Response:\n")
    assert report.boundary_checked == 0
    assert "data.system is not used" in report.text()


def test_needed_responses_are_refused_when_missing_and_dropped_when_blank(write):
    _, report = load_examples(write(ROWS), CHAT, DataConfig(), require_references=True)
    assert (report.empty_rows, report.without_reference) == (2, 0)
    user = {"role": "user", "content": "Who?"}
    turns = [{"messages": [user, {"role": "assistant", "content": "He."}]}, {"messages": [user]}]
    source = write(turns)
    examples, _ = load_examples(source, CHAT, DataConfig())
    assert [len(example.references) for example in examples] == [1, 0]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: expected a response.* 0 other rows"):
        load_examples(source, CHAT, DataConfig(), require_references=True)


def test_nothing_left_is_refused_with_the_counts(write):
    with pytest.raises(DataError, match="found 2 rows, 1 empty and 1 with a prompt of more than"):
        load_examples(write([ROWS[1], ROWS[3]]), CHAT, DataConfig())
    with pytest.raises(DataError, match="expected at least one row; found none"):
        load_examples(write([]), CHAT, DataConfig())


def test_the_demo_is_readable_as_it_ships():
    for split in ("train", "valid", "test"):
        examples, report = load_examples(
            f"demo:{split}", CHAT, DataConfig(max_prompt_tokens=2000), require_references=True
        )
        assert len(examples) == report.rows_read > 0
        assert report.duplicate_prompts == 0
        assert set(report.ignored) == {"kind", "split"}


def test_every_response_of_a_row_can_be_an_example_of_its_own(write):
    source = write([{"prompt": "a", "completion": ["One.", "Two."]}, {"prompt": "b"}])
    together, _ = load_examples(source, CHAT, DataConfig())
    apart, report = load_examples(source, CHAT, DataConfig(), every_response=True)
    assert [e.references for e in together] == [("One.", "Two."), ()]
    assert [e.references for e in apart] == [("One.",), ("Two.",), ()]
    assert apart[0].reference_ids == together[0].reference_ids != apart[1].reference_ids
    assert [e.prompt_ids for e in apart[:2]] == [together[0].prompt_ids] * 2
    assert report.rows_read == 2


def test_an_example_keeps_the_prompt_as_the_source_has_it(write):
    turns = [{"role": "user", "content": "a"}]
    row = {"messages": [*turns, {"role": "assistant", "content": "b"}]}
    (example,), _ = load_examples(write([row]), CHAT, DataConfig())
    assert example.row_prompt == tuple(turns)


def test_text_of_strangers_cannot_act_on_a_terminal(write):
    row = {"prompt": "a\x1b[31mred\u202e", "completion": "b\x07\nc", "\x1b]0;title\x07": 1}
    _, report = load_examples(write([row]), CHAT, DataConfig())
    text = report.text()
    assert "\\x1b[31mred\\u202e" in text
    assert not set("\x1b\x07\u202e") & set(text)
    with pytest.raises(DataError) as caught:
        load_examples(write([{"\x1b[2J": 1}]), CHAT, DataConfig())
    assert "found the columns \\x1b[2J." in str(caught.value)


def test_template_variables_are_used_and_named(write):
    tokenizer = byte_level(CHATML + "{{ mood }}")
    examples, report = load_examples(
        write(ROWS), tokenizer, DataConfig(template_kwargs={"mood": "calm"})
    )
    assert examples[0].prompt.endswith("assistant\ncalm")
    assert 'the chat template is given mood = "calm"' in report.text()
    for options in ({"template_kwargs": {"mood": "calm"}}, {"template_name": "rag"}):
        with pytest.raises(DataError, match="expected a chat template to use it"):
            load_examples(write(ROWS), byte_level(), DataConfig(**options))


def test_a_missing_response_names_the_column_that_was_not_used(write):
    source = write([{"prompt": "a", "reply": "b"}])
    with pytest.raises(DataError, match=r"Not used: the columns reply; .*\{response: reply\}"):
        load_examples(source, CHAT, DataConfig(), require_references=True)
    (example,), _ = load_examples(source, CHAT, DataConfig(columns={"response": "reply"}))
    assert example.references == ("b",)


def test_a_system_message_that_the_template_leaves_out_is_a_fault(write):
    template = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    with pytest.raises(DataError, match="leaves out the text of a turn of role system"):
        load_examples(write(ROWS[:1]), byte_level(template), DataConfig(system="Be kind."))
    assert load_examples(write(ROWS[:1]), byte_level(template), DataConfig(system=""))


def test_a_template_may_change_white_space_but_no_words(write):
    rows = [{"prompt": "Who?\n\nNow.", "completion": "He\n\ndid."}]
    spaced = byte_level(CHATML.replace("['content']", "['content'].replace('\n\n', '\n')"))
    examples, report = load_examples(write(rows), spaced, DataConfig())
    assert spaced.decode(list(examples[0].reference_ids)) == "He\ndid.<|im_end|>"
    assert report.faults == {}
    other = byte_level(CHATML.replace("['content']", "['content'].replace('did', 'does')"))
    _, report = load_examples(write(rows), other, DataConfig())
    assert report.faults == {"the chat template rewrites the response": 1}


def test_a_prompt_far_too_long_is_not_tokenised(write, monkeypatch):
    rows = [*ROWS[:1], {**ROWS[0], "instruction": "word " * 2_000_000}]
    monkeypatch.setattr("tdistill.data.making.encode_prompts", forbid_long(making.encode_prompts))
    _, report = load_examples(write(rows), CHAT, DataConfig())
    assert (report.rows_kept, report.long_prompts) == (1, 1)


def forbid_long(encode):
    def encode_short(tokenizer, template, prompts):
        assert all(len(prompt) < 10_000 for prompt in prompts)
        return encode(tokenizer, template, prompts)

    return encode_short
