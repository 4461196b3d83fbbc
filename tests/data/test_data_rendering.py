from __future__ import annotations

import pytest
from data_tokenizers import CHATML, byte_level

from tdistill.data.formats import Instruction, PromptRecord
from tdistill.data.rendering import is_blank, render_prompt, resolve_template
from tdistill.errors import DataError

CHAT, BARE = byte_level(CHATML), byte_level()
USER = {"role": "user", "content": "Who?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "He."}


def render(prompt, template, *, system=None):
    return render_prompt(template, PromptRecord("f:1", prompt, (), False), system)


def test_auto_follows_the_tokenizer_and_the_format():
    assert resolve_template(CHAT, "auto", "instruction") == "chat"
    assert resolve_template(BARE, "auto", "instruction") == "alpaca"
    assert resolve_template(BARE, "auto", "messages") == "plain"
    assert resolve_template(CHAT, "plain", "messages") == "plain"
    with pytest.raises(DataError, match="Use alpaca, plain or auto"):
        resolve_template(BARE, "chat", "messages")


def test_a_system_message_of_the_row_wins():
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


def test_blank_prompts():
    blank = (" \n", Instruction("", " "), (), (SYSTEM,), ({"role": "user", "content": " "},))
    assert all(is_blank(prompt) for prompt in blank)
    full = ("a", Instruction("", "a"), (SYSTEM, USER))
    assert not any(is_blank(prompt) for prompt in full)


def test_tools_need_a_chat_template():
    record = PromptRecord("f:1", "Who?", (), False, tools=({"type": "function"},))
    with pytest.raises(DataError, match=r"f:1: expected a row without tools"):
        render_prompt("plain", record)


def test_a_system_column_stands_before_the_prompt():
    record = PromptRecord("f:1", "Who?", (), False, system="Be brief.")
    assert render_prompt("plain", record, "Be kind.") == "Be brief.\nWho?"
