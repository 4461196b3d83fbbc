"""Reasoning: one opening tag, and no plain answer inside a block."""

from __future__ import annotations

import json

import pytest
from chat_templates import EMPTY_BLOCK, FIELD_ONLY, FORGETFUL, HYBRID, LITERAL, THINKER, thinking

from tdistill.data import DataConfig, load_examples
from tdistill.data.chat import chat_template_of
from tdistill.data.formats import PromptRecord
from tdistill.data.making import make_examples
from tdistill.data.thinking import block_of_prompt, divide

QUESTION = ({"role": "user", "content": "Two and two?"},)
OPENED = "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n<think>\n"
BARE = OPENED.removesuffix("<think>\n")
TAGS = "<think>\nAdd them.\n</think>\n\nFour."
CLOSING_ALONE = "Add them.\n</think>\n\nFour."
AIRY = "<think>\n\nAdd them.\n\n</think>\n\n\nFour."
TIGHT = "<think>Add them.</think>Four."
FIELD = {"role": "assistant", "content": "Four.", "reasoning_content": "Add them."}
REASONED = "Add them.\n</think>\n\nFour.<|im_end|>"
CLOSED = "</think>\n\nFour.<|im_end|>"


def outcome(template, response, prompt=QUESTION, *, special=False, merges_lines=True, **config):
    tokenizer = thinking(template, special=special, merges_lines=merges_lines)
    settings = DataConfig(**config)
    record = PromptRecord("f:1", prompt, (response,), False)
    chat = chat_template_of(tokenizer, settings)
    (found,) = make_examples(tokenizer, "chat", [record], settings, chat)
    assert found.example is not None
    return found, found.example.prompt, tokenizer.decode(list(found.example.reference_ids))


@pytest.mark.parametrize("template", [THINKER, FORGETFUL, LITERAL, FIELD_ONLY, EMPTY_BLOCK])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("response", [TAGS, AIRY, CLOSING_ALONE, TIGHT, FIELD, "Four."])
def test_a_block_that_the_prompt_opens_is_opened_once_and_closed_before_the_answer(
    template, special, response
):
    found, prompt, trained = outcome(template, response, special=special)
    assert prompt == OPENED
    whole = prompt + trained
    assert (whole.count("<think>"), whole.count("</think>")) == (1, 1)
    reasoning, _, answer = whole.partition("<think>")[2].partition("</think>")
    assert reasoning.strip() == ("" if response == "Four." else "Add them.")
    assert answer.strip() == "Four.<|im_end|>"
    assert found.fault is None
    assert found.compared
    assert found.lost == ()


@pytest.mark.parametrize(
    ("template", "response", "trained", "own"),
    [
        (THINKER, TAGS, REASONED, True),
        (THINKER, FIELD, REASONED, True),
        (THINKER, "Four.", CLOSED, False),
        (FIELD_ONLY, TAGS, REASONED, True),
        (LITERAL, TAGS, REASONED, True),
        (LITERAL, "Four.", CLOSED, False),
        (FORGETFUL, TAGS, REASONED, False),
        (FORGETFUL, "Four.", CLOSED, False),
        (EMPTY_BLOCK, "Four.", CLOSED, False),
    ],
)
def test_it_is_known_where_the_template_writes_the_block_itself(template, response, trained, own):
    found, _, text = outcome(template, response)
    assert (text, found.own, found.compared) == (trained, own, True)
    assert found.closed == (response == "Four." and not own)


def test_line_feeds_on_both_sides_of_the_boundary_are_kept_where_they_stay_two_tokens():
    response, own = "Four.", "\n</think>\n\nFour.<|im_end|>"
    found, _, text = outcome(THINKER, response, merges_lines=False)
    assert (text, found.own, found.closed, found.fault) == (own, True, False, None)
    found, _, text = outcome(THINKER, response, merges_lines=True)
    assert (text, found.own, found.closed, found.fault) == (CLOSED, False, True, None)


@pytest.mark.parametrize(
    ("response", "trained"),
    [
        (TAGS, "<think>\nAdd them.\n</think>\n\nFour.<|im_end|>"),
        (TIGHT, "<think>\nAdd them.\n</think>\n\nFour.<|im_end|>"),
        (FIELD, "<think>\nAdd them.\n</think>\n\nFour.<|im_end|>"),
        ("Four.", "<think>\n\n</think>\n\nFour.<|im_end|>"),
    ],
)
def test_a_block_that_the_template_writes_for_a_last_turn_is_trained_on(response, trained):
    found, prompt, text = outcome(HYBRID, response)
    assert (prompt, text, found.own) == (BARE, trained, True)


@pytest.mark.parametrize("response", [TAGS, CLOSING_ALONE, FIELD, "Four."])
def test_where_thinking_is_off_the_answer_follows_the_closed_block(response):
    found, prompt, text = outcome(HYBRID, response, template_kwargs={"enable_thinking": False})
    assert prompt == BARE + "<think>\n\n</think>\n\n"
    assert text == "Four.<|im_end|>"
    lost = {"Four.": ()}.get(response if isinstance(response, str) else "")
    expected = ("reasoning_content",) if response is FIELD else ("reasoning",)
    assert found.lost == (expected if lost is None else lost)
    assert found.own


@pytest.mark.parametrize("template", [LITERAL, FORGETFUL])
def test_reasoning_that_never_ends_is_counted_not_trained(template):
    found, _, text = outcome(template, "<think>\nAdd them, then")
    assert found.fault == "a think block would be opened twice, or stay open"
    assert text == ""


def test_earlier_reasoning_is_left_to_the_template():
    turns = ({"role": "user", "content": "a"}, FIELD, {"role": "user", "content": "b"})
    found, prompt, _ = outcome(HYBRID, "Four.", turns)
    assert "Add them." not in prompt
    assert "Four." in prompt
    assert found.fault is None


@pytest.mark.parametrize("template", [HYBRID, FORGETFUL])
def test_each_of_all_turns_has_its_own_reasoning_and_no_earlier_one(template, tmp_path):
    talk = [*QUESTION, FIELD, {"role": "user", "content": "And three?"}, {**FIELD, "content": "7."}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk}))
    tokenizer = thinking(template)
    config = DataConfig(trained_turns="all")
    (first, second), report = load_examples(str(tmp_path / "a.jsonl"), tokenizer, config)
    for made, answer in ((first, "Four."), (second, "7.")):
        whole = made.prompt + tokenizer.decode(list(made.reference_ids))
        assert whole.count("Add them.") == whole.count("<think>") == whole.count("</think>") == 1
        assert whole.endswith(f"Add them.\n</think>\n\n{answer}<|im_end|>")
    assert "Four.<|im_end|>" in second.prompt
    assert report.faults == {}


def test_reasoning_that_the_template_does_not_write_is_said():
    from data_tokenizers import CHATML

    found, _, text = outcome(CHATML, FIELD)
    assert (found.lost, text) == (("reasoning_content",), "Four.<|im_end|>")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[THINK]a[/THINK]b", ("a", "[/THINK]", "b")),
        ("Say <think>a</think>b", (None, "", "Say <think>a</think>b")),
        ("", (None, "", "")),
    ],
)
def test_reasoning_is_known_by_tags_at_the_start(content, parts):
    assert divide({"content": content}) == parts


@pytest.mark.parametrize(
    ("prompt", "closed"),
    [
        ("What is <think>?<|assistant|>", None),
        ("<think>a</think>b<|assistant|>", None),
        ("<|assistant|></think>", None),
        ("<|assistant|><think>", False),
        ("<think>a</think>b<|assistant|><think>\n", False),
        ("<|assistant|><seed:think>\nNo time.\n</seed:think>", True),
        ("<|turn>model\n<|channel>thought\n<channel|>", True),
    ],
)
def test_a_prompt_opens_a_block_where_it_ends_with_one(prompt, closed):
    block = block_of_prompt(prompt)
    assert (None if block is None else block.closed) == closed


# The generation prompt closes a block that it never opened; with `thinking` it opens one instead.
HALF = FORGETFUL.replace("<think>\n", "{{ '<think>' if thinking else '</think>' }}").replace(
    "{{ message.content", "</think>{{ message.content"
)


@pytest.mark.parametrize(
    ("thinks", "response", "trained"),
    [
        (False, "Four.", "Four.<|im_end|>"),
        (False, TAGS, "Four.<|im_end|>"),
        (True, "Four.", "</think>\n\nFour.<|im_end|>"),
        (True, TAGS, "\nAdd them.\n</think>\n\nFour.<|im_end|>"),
    ],
)
def test_a_template_with_half_a_block_is_continued_by_the_other_half(thinks, response, trained):
    found, prompt, text = outcome(HALF, response, template_kwargs={"thinking": thinks})
    assert prompt.endswith("<think>" if thinks else "assistant\n</think>")
    assert (text, found.fault) == (trained, None)
    assert found.lost == (("reasoning",) if response == TAGS and not thinks else ())
