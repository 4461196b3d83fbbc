"""Turns of a conversation in one form, whatever the names and shapes that a source gives them."""

from __future__ import annotations

import json
from typing import Any

from tdistill.data.readers import check_depth, checked_json, type_name
from tdistill.errors import DataError

Message = dict[str, Any]
"""A turn: ``role`` (system, developer, user, assistant, tool), ``content`` (text, absent where a
turn only calls tools), ``tool_calls``, ``reasoning_content``, and what else the source gives."""

ROLE_NAMES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_call": "function_call",
}
REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")
_EXPECTED = "a list of objects with the texts role and content"


class TurnError(Exception):
    """What was expected in a turn, and what was found; the caller adds the place."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}; found {found}")
        self.expected, self.found = expected, found


def read_messages(value: Any) -> tuple[Message, ...]:
    """Turns in one form.

    Understood are ``role`` and ``content``, ShareGPT's ``from`` and ``value``, texts in parts
    (``[{"type": "text", "text": ...}]``), the roles of ``ROLE_NAMES``, tool calls of OpenAI's form
    (``tool_calls``, or the older ``function_call``), reasoning under any of its names.

    Args:
        value: the list of a row, or its JSON text.

    Returns:
        The turns, each with a role of five; fields that are null are left out.

    Raises:
        TurnError: something else, named with its turn.
    """
    value = _json(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise TurnError(_EXPECTED, type_name(value))
    return tuple(_turn(turn, index) for index, turn in enumerate(value))


def _turn(turn: Any, index: int) -> Message:
    if not isinstance(turn, dict):
        raise TurnError(_EXPECTED, f"{type_name(turn)} as turn {index}")
    # Parquet fills the fields of absent keys with null; templates test for presence.
    given = {key: item for key, item in turn.items() if item is not None}
    for other, name in (("from", "role"), ("value", "content")):
        if name not in given and other in given:
            given[name] = given.pop(other)
    role = _role(given.get("role"), index)
    content = given.get("content")
    if role == "tool" and isinstance(content, dict):  # a result as it was returned
        content = json.dumps(content, ensure_ascii=False)
    content = _content(content, index)
    rest = {key: item for key, item in given.items() if key not in ("role", "content")}
    if role == "function_call":
        role, rest["tool_calls"], content = "assistant", content or "", None
    reasoning = next((rest.pop(name) for name in REASONING_NAMES if name in rest), None)
    for name in REASONING_NAMES:
        rest.pop(name, None)
    if reasoning is not None and not isinstance(reasoning, str):
        raise TurnError("text as reasoning", f"{type_name(reasoning)} in turn {index}")
    calls = _calls(rest, index)
    if content is None and not (role == "assistant" and (calls or reasoning)):
        if role != "assistant" or "content" not in turn:
            raise TurnError(_EXPECTED, f"null as content of turn {index}")
        content = ""
    parts = {
        "content": content,
        "reasoning_content": reasoning or None,
        "tool_calls": calls or None,
    }
    return {"role": role, **{k: v for k, v in parts.items() if v is not None}, **rest}


def _role(role: Any, index: int) -> str:
    if not isinstance(role, str):
        raise TurnError(_EXPECTED, f"{type_name(role)} as role of turn {index}")
    name = ROLE_NAMES.get(role.strip().lower())
    if name is None:
        raise TurnError(
            f"a role among {', '.join(ROLE_NAMES)}", f"the role {role[:40]} in turn {index}"
        )
    return name


def _content(content: Any, index: int) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TurnError(_EXPECTED, f"{type_name(content)} as content of turn {index}")
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else None
            what = f"a part of type {kind}" if isinstance(kind, str) else type_name(part)
            raise TurnError(
                "text, or a list of texts, as content", f"{what} in the content of turn {index}"
            )
        texts.append(text)
    return "".join(texts)


def _calls(rest: Message, index: int) -> list[Message]:
    """The tool calls of a turn, taken out of its other fields, in OpenAI's form."""
    calls = rest.pop("tool_calls", None)
    older = rest.pop("function_call", None)
    calls = calls if calls is not None else ([older] if older is not None else [])
    if isinstance(calls, str):
        calls = _json(calls)
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        raise TurnError("a list of tool calls", f"{type_name(calls)} in turn {index}")
    return [_call(call, index) for call in calls]


def _call(call: Any, index: int) -> Message:
    call = _json(call) if isinstance(call, str) else call
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise TurnError("tool calls with the name of a function", f"one without in turn {index}")
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        arguments = _json(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict | None):
        raise TurnError(
            "an object, or its JSON, as arguments of a tool call",
            f"{type_name(arguments)} in turn {index}",
        )
    assert isinstance(call, dict)
    named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    function = {"name": inner["name"], "arguments": arguments or {}}
    return {**named, "type": "function", "function": function}


def _json(text: str) -> Any:
    """The value of a JSON text; the text where it is none."""
    try:
        return checked_json(text, "a tool call")
    except (json.JSONDecodeError, DataError):
        return text


def read_tools(value: Any) -> tuple[Message, ...]:
    """The tools of a row: a list of JSON schemas or its JSON text, each in OpenAI's form or flat.

    Args:
        value: as the source has it; null, an empty text and an empty list are no tools.

    Raises:
        TurnError: something else.
    """
    expected = "a list of tools, each an object with a name"
    if isinstance(value, str):
        value = _json(value) if value.strip() else None
    tools = [_json(tool) if isinstance(tool, str) else tool for tool in _as_list(value, expected)]
    found: list[Message] = []
    for tool in tools:
        inner = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise TurnError(expected, "one without a name")
        found.append({"type": "function", "function": inner})
    return tuple(found)


def _as_list(value: Any, expected: str) -> list[Any]:
    value = [value] if isinstance(value, dict) else value
    if value is not None and not isinstance(value, list):
        raise TurnError(expected, type_name(value))
    return value or []


def check_text(value: Any, where: str) -> None:
    """Refuse halves of surrogate pairs, which no tokenizer can read, and too deep values.

    Args:
        value: a text, or lists and objects of texts.
        where: the place, for the message.

    Raises:
        DataError: there are some.
    """
    if not isinstance(value, str):
        check_depth(value, where)
    for text in _texts(value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: expected text that UTF-8 can hold; found half of a surrogate pair "
                f"(U+{ord(text[error.start]):04X}) at character {error.start}. Write the file "
                "again from the original, or remove the row."
            ) from error


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in _texts(item)]
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []
