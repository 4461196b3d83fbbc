"""The chat template: its variables, its date, its name, its errors."""

from __future__ import annotations

from datetime import datetime

import pytest
from data_tokenizers import CHATML, TRIMMED, byte_level

from tdistill.data import DataConfig
from tdistill.data.chat import ChatTemplate, TemplateRefusal, chat_template_of
from tdistill.errors import DataError

USER = [{"role": "user", "content": "Who?"}]
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML
THEN = datetime(2026, 3, 5, 7, 8, 9)
FORMATS = ("%d %B %Y", "%Y-%m-%d", "%A, %-d %b", "%H:%M:%S", "%F %T", "%I %p", "%j %U", "%e", "%%d")


def chat(template, now=None, **config):
    return chat_template_of(byte_level(template), DataConfig(**config), now)


@pytest.mark.parametrize("format", FORMATS)
def test_a_template_that_asks_for_the_date_is_told_the_given_one(format):
    template = f"{{{{ strftime_now('{format}') }}}}|{{{{ messages[0].content }}}}"
    text = chat(template, THEN).render(USER, prompt=True)
    assert text == f"{THEN.strftime(format)}|Who?"


def test_the_date_reaches_macros_and_templates_that_ask_whether_there_is_a_clock():
    template = (
        "\n  {%- macro today() %}{{ strftime_now('%Y') }}{% endmacro %}"
        "{% if strftime_now is defined %}{% set year = today() %}{% endif %}"
        "{{- 'In ' + year }}"
    )
    assert chat(template, THEN).render(USER, prompt=True) == "In 2026"


@pytest.mark.parametrize("start", ["", "\n", "  \n", "  {% if true %}\n{% endif %}"])
def test_the_clock_changes_no_other_character_of_a_template(start):
    tokenizer = byte_level(start + DATED)
    today = datetime.now()
    ours = chat_template_of(tokenizer, DataConfig(), today).render(USER, prompt=True)
    own = tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert ours == own


def test_the_configuration_names_the_date():
    text = chat(DATED, THEN, clock="2024-07-26").render(USER, prompt=True)
    assert text.startswith("Today is 26 Jul 2024.\n")


def test_variables_reach_the_template():
    template = CHATML + "{% if mode is defined %}{{ mode }}{% endif %}"
    assert (
        chat(template, template_kwargs={"mode": "fast"}).render(USER, prompt=True).endswith("fast")
    )


def test_a_variable_that_the_template_does_not_read_is_refused_with_the_nearest():
    template = CHATML + "{{ enable_thinking }}"
    with pytest.raises(DataError, match=r"found enable_thinkng, .* \(nearest: enable_thinking\)"):
        chat(template, template_kwargs={"enable_thinkng": False})


def test_one_of_several_templates_is_chosen_by_name():
    several = {"plain": CHATML, "rag": "R{{ messages[0].content }}"}
    with pytest.raises(DataError, match=r"data\.template_name: .* \(plain, rag\), none of"):
        chat(several)
    with pytest.raises(DataError, match=r"expected one of plain, rag; found rga"):
        chat(several, template_name="rga")
    assert chat(several, template_name="rag").render(USER, prompt=True) == "RWho?"
    default = several | {"default": "D{{ messages[0].content }}"}
    assert chat(default).render(USER, prompt=True) == "DWho?"
    with pytest.raises(DataError, match="expected null"):
        chat(CHATML, template_name="plain")


def test_rows_with_tools_take_the_template_that_is_for_them():
    several = {"default": "D{{ messages[0].content }}", "tool_use": "T{{ tools[0].function.name }}"}
    tool = {"type": "function", "function": {"name": "look"}}
    assert chat(several).render(USER, [tool], prompt=True) == "Tlook"


def test_a_developer_speaks_as_the_system_where_the_template_knows_none():
    turns = [{"role": "developer", "content": "Be brief."}, *USER]
    assert "<|im_start|>system\nBe brief." in chat(CHATML).render(turns, prompt=True)
    knows = "{# developer #}" + CHATML
    assert "<|im_start|>developer\nBe brief." in chat(knows).render(turns, prompt=True)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (TRIMMED, "no system role"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[0]['nothing'] + 'a' }}", "nothing"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_whatever_a_template_raises_is_a_refusal_with_the_row(template, reason):
    turns = [{"role": "system", "content": "Be brief."}, *USER]
    with pytest.raises(TemplateRefusal, match=r"f:1: expected turns .* system, user \(") as caught:
        ChatTemplate(byte_level(template)).render(turns, prompt=True, where="f:1")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_reads_texts_in_parts_gets_them_so():
    parts = (
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
        "{% endif %}{% endfor %}"
    )
    seeing = chat(CHATML.replace("{{ message['content'] }}", parts))
    assert seeing.in_parts
    assert seeing.render(USER, prompt=True) == chat(CHATML).render(USER, prompt=True)
    assert not chat(CHATML).in_parts


@pytest.mark.parametrize("given", [7, {"default": ["a"]}])
def test_a_template_that_is_no_text_is_refused(given):
    tokenizer = byte_level(CHATML)
    tokenizer.chat_template = given
    with pytest.raises(DataError, match="expected chat templates that are texts; found another"):
        chat_template_of(tokenizer, DataConfig())
