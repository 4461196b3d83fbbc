from __future__ import annotations

import pytest
from data_tokenizers import CHATML, TRIMMED, WORDY, byte_level

from tdistill.data.formats import Instruction, PromptRecord
from tdistill.data.rendering import (
    is_blank,
    render_conversation,
    render_prompt,
    resolve_template,
    strips_response,
)
from tdistill.errors import DataError

CHAT, BARE = byte_level(CHATML), byte_level()
USER = {"role": "user", "content": "Who?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "He."}


def render(prompt, template, *, tokenizer=CHAT, system=None):
    return render_prompt(tokenizer, template, PromptRecord("f:1", prompt, (), False), system)


def test_auto_follows_the_tokenizer_and_the_format():
    assert resolve_template(CHAT, "auto", "instruction") == "chat"
    assert resolve_template(BARE, "auto", "instruction") == "alpaca"
    assert resolve_template(BARE, "auto", "messages") == "plain"
    assert resolve_template(CHAT, "plain", "messages") == "plain"
    with pytest.raises(DataError, match="Use alpaca, plain or auto"):
        resolve_template(BARE, "chat", "messages")


@pytest.mark.parametrize(
    ("prompt", "body"),
    [
        ("Who?", "<|im_start|>user\nWho?<|im_end|>\n"),
        (Instruction("Add.", "1 1"), "<|im_start|>user\nAdd.\n\n1 1<|im_end|>\n"),
        (Instruction("Add.", " "), "<|im_start|>user\nAdd.<|im_end|>\n"),
        ((USER,), "<|im_start|>user\nWho?<|im_end|>\n"),
    ],
)
def test_chat_prompts_end_where_the_response_begins(prompt, body):
    start = "<|im_start|>assistant\n"
    assert render(prompt, "chat") == body + start
    system = "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert render(prompt, "chat", system="Be kind.") == system + body + start


def test_a_system_message_of_the_row_wins():
    assert "Be kind." not in render((SYSTEM, USER), "chat", system="Be kind.")
    assert render((SYSTEM, USER), "plain", system="Be kind.") == "Be brief.\nWho?\n"


def test_alpaca_prompts():
    text = render(Instruction("Add.", "1 1"), "alpaca")
    assert text.endswith("### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n")
    assert "paired with an input" in text
    for prompt in (Instruction("Add.", ""), "Add.", ({"role": "user", "content": "Add."},)):
        text = render(prompt, "alpaca")
        assert text.endswith("request.\n\n### Instruction:\nAdd.\n\n### Response:\n")


def test_braces_in_an_instruction_are_kept():
    assert "\nPrint {input}.\n" in render(Instruction("Print {input}.", "{x}"), "alpaca")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [("Q: who?", "Q: who?"), (Instruction("Add.", "1 1"), "Add.\n1 1\n"), ((USER,), "Who?\n")],
)
def test_plain_prompts(prompt, text):
    assert render(prompt, "plain") == text


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_several_turns_need_a_chat_template(template):
    with pytest.raises(DataError, match=r"f:1: expected turns of user.*user, assistant, user"):
        render((USER, ASSISTANT, USER), template)


def test_alpaca_does_not_drop_a_system_turn():
    with pytest.raises(DataError, match="found turns of system, user"):
        render((SYSTEM, USER), "alpaca")


def test_a_chat_template_that_refuses_the_turns():
    with pytest.raises(DataError, match=r"f:1: .*no system role.*data\.system"):
        render("Who?", "chat", tokenizer=byte_level(TRIMMED), system="Be kind.")


def test_blank_prompts():
    blank = (" \n", Instruction("", " "), (), (SYSTEM,), ({"role": "user", "content": " "},))
    assert all(is_blank(prompt) for prompt in blank)
    full = ("a", Instruction("", "a"), (SYSTEM, USER))
    assert not any(is_blank(prompt) for prompt in full)


def test_whether_the_template_strips_the_response():
    assert strips_response(byte_level(TRIMMED), "chat")
    assert not strips_response(byte_level(CHATML), "chat")
    assert not strips_response(byte_level(WORDY), "chat")
    assert not strips_response(byte_level(TRIMMED), "plain")
    one_end = TRIMMED.replace("['content'] | trim", "['content'].rstrip()")
    assert not strips_response(byte_level(one_end), "chat")


def test_a_template_that_leaves_the_response_out_is_refused():
    tokenizer = byte_level("{{ messages[0]['content'] }}")
    with pytest.raises(DataError, match="leaves it out: 'question'"):
        strips_response(tokenizer, "chat")


def test_the_whole_conversation_holds_the_first_reference():
    record = PromptRecord("f:1", "Who?", ("He.", "She."), False)
    whole = render_conversation(CHAT, record)
    assert whole.startswith(render_prompt(CHAT, "chat", record))
    assert whole.endswith("assistant\nHe.<|im_end|>\n")


def test_an_empty_system_message_keeps_the_template_from_its_own():
    own = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good<|im_end|>\n{% endif %}"
    )
    tokenizer = byte_level(own + CHATML)
    assert "Be good" in render("Who?", "chat", tokenizer=tokenizer)
    empty = render("Who?", "chat", tokenizer=tokenizer, system="")
    assert empty.startswith("<|im_start|>system\n<|im_end|>\n")
