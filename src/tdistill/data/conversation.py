"""What a chat template makes of one row: the prompt, and the response as its continuation.

The response is what the template itself writes after its generation prompt, when it renders the
whole conversation; so prompt and response are the template's own text by construction. Where that
cannot be had the row has a fault, and is counted by it instead of being trained on.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tdistill.data.chat import ChatTemplate, TemplateRefusal
from tdistill.data.formats import Instruction, Prompt, PromptRecord, text_of_response
from tdistill.data.messages import Message
from tdistill.data.thinking import (
    TAGS,
    ThinkBlock,
    as_message,
    block_of_prompt,
    divide,
    inside_open_block,
    with_answer_alone,
    with_reasoning_apart,
)

CALL_LEFT_OUT = "the chat template leaves out a tool call"
RESULT_LEFT_OUT = "the chat template leaves out the result of a tool"
REWRITTEN = "the chat template rewrites the response"
THINKS_TWICE = "a think block would be opened twice, or stay open"
NOT_CONTINUED = "the whole conversation does not begin with the generation prompt"
_MARKS = ("name", "key", "value", "result")
_LABELS = {"id", "type", "name", "weight", "tool_call_id", "role", "content", "tool_calls"}


@dataclass(frozen=True)
class Rendered:
    """One row as a chat template writes it.

    Attributes:
        prompt: the generation prompt; None where ``fault`` lies in it.
        response: what follows, to the end of the assistant's turn; None without one, or where
            ``fault`` lies in it.
        answer: the answer's own text inside ``response``, where it stands there as it is.
        fault: why the row cannot be trained on.
        own: whether the template writes prompt and response so by itself; False where reasoning
            is in a block that it only writes into generation prompts.
        lost: fields of the row that the template does not write.
        closed: whether a block was closed before an answer without reasoning.
        instead: the same row with no white space at the start of the response, to be taken where
            it would be one token with that at the end of the prompt.
    """

    prompt: str | None
    response: str | None = None
    answer: str = ""
    fault: str | None = None
    own: bool = True
    lost: tuple[str, ...] = ()
    closed: bool = False
    instead: Rendered | None = None


def as_turns(prompt: Prompt, system: str | None) -> list[Message]:
    """A prompt of any form as turns, with a system message if it has none."""
    if isinstance(prompt, tuple):
        turns = list(prompt)
    elif isinstance(prompt, str):
        turns = [{"role": "user", "content": prompt}]
    else:
        assert isinstance(prompt, Instruction)
        parts = [part for part in (prompt.instruction, prompt.input) if part.strip()]
        turns = [{"role": "user", "content": "\n\n".join(parts)}]
    # An empty message is a choice too: it keeps a template from putting in its own.
    if system is not None and not any(turn["role"] in ("system", "developer") for turn in turns):
        turns.insert(0, {"role": "system", "content": system})
    return turns


def render_row(chat: ChatTemplate, record: PromptRecord, system: str | None = None) -> Rendered:
    """Prompt and first response of a row.

    Args:
        chat: the template.
        record: the row, whose prompt is not blank.
        system: system message for rows that bring none.

    Returns:
        What the template makes of it; never an exception, a refusal is a fault.
    """
    own = record.system if record.system is not None else system
    turns = as_turns(record.prompt, own)
    answer = as_message(record.references[0]) if record.references else None
    found: Rendered | None = None
    for shape in _shapes([*turns, *([answer] if answer else [])]):
        told = [_shaped(turn, *shape) for turn in turns]
        reply = _shaped(answer, *shape) if answer else None
        found = _render(chat, told, reply, record)
        if found.fault is None:
            return found
    assert found is not None, "there is at least one shape"
    return found


def _shapes(turns: Sequence[Message]) -> Iterator[tuple[bool, bool]]:
    """Ways to give tool calls, of which templates take one or the other.

    Arguments as an object or as JSON text; content absent or empty where a turn only calls.
    """
    if not any("tool_calls" in turn for turn in turns):
        return iter([(False, False)])
    return itertools.product((False, True), (False, True))


def _shaped(turn: Message, as_text: bool, empty_content: bool) -> Message:
    if "tool_calls" not in turn:
        return turn if "content" in turn else {**turn, "content": ""}
    shaped = {"content": "", **turn} if empty_content else dict(turn)
    if as_text:
        shaped["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _compact(call)}}
            for call in turn["tool_calls"]
        ]
    return shaped


def _compact(call: Message) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)


def _render(
    chat: ChatTemplate, turns: list[Message], answer: Message | None, record: PromptRecord
) -> Rendered:
    where, tools = record.where, record.tools
    try:
        prompt = chat.render(turns, tools, prompt=True, where=where)
        fault = _fault_of_prompt(chat, turns, prompt, record)
    except TemplateRefusal as refusal:
        return Rendered(None, fault=f"the chat template refuses the turns ({refusal.reason})")
    if fault is not None:
        return Rendered(None, fault=fault)
    lost = ("tools",) if tools and not _writes_tools(chat, turns, prompt, record) else ()
    if answer is None:
        return Rendered(prompt, lost=lost)
    try:
        made = _continued(chat, turns, answer, prompt, record)
        unwritten = None if made.fault else _unwritten(chat, [*turns, answer], record, prompt=False)
        made = made if unwritten is None else Rendered(prompt, fault=unwritten)
    except TemplateRefusal as refusal:
        made = Rendered(prompt, fault=f"the chat template refuses the response ({refusal.reason})")
    return replace(made, lost=(*lost, *made.lost))


def _fault_of_prompt(
    chat: ChatTemplate, turns: Sequence[Message], prompt: str, record: PromptRecord
) -> str | None:
    """What the template leaves out of what precedes the response; earlier reasoning is no fault."""
    unwritten = _unwritten(chat, turns, record, prompt=True)
    if unwritten is not None:
        return f"{unwritten}, in the prompt"
    for turn in turns:
        # Results were tried; beside a call, text is a remark that templates may leave out.
        if turn["role"] == "tool" or "tool_calls" in turn:
            continue
        text = divide(turn)[2] if turn["role"] == "assistant" else turn["content"]
        if not _written(text, prompt):
            return f"the chat template leaves out the text of a turn of role {turn['role']}"
    return None


def _continued(
    chat: ChatTemplate, turns: list[Message], answer: Message, prompt: str, record: PromptRecord
) -> Rendered:
    """The response as what follows the prompt in the template's rendering of the conversation."""

    def rendered(turn: Message) -> str:
        return chat.render([*turns, turn], record.tools, prompt=False, where=record.where)

    block = block_of_prompt(prompt)
    # Some templates know reasoning by its field alone, others by its tags alone.
    apart = with_reasoning_apart(answer)
    for turn in (answer,) if apart is None else (answer, apart):
        whole = rendered(turn)
        rest = whole[len(prompt) :]
        if whole.startswith(prompt) and _thinks_once(block, rest, answer):
            made = _checked(answer, prompt, rest)
            if block is None or not (block.space and rest[:1].isspace()):
                return made
            return replace(made, instead=_beside_block(block, answer, prompt, rendered))
    if block is None:
        continued = rendered(answer).startswith(prompt)
        return Rendered(prompt, fault=THINKS_TWICE if continued else NOT_CONTINUED)
    return _beside_block(block, answer, prompt, rendered)


def _beside_block(
    block: ThinkBlock, answer: Message, prompt: str, rendered: Callable[[Message], str]
) -> Rendered:
    """The response of which the template writes the answer alone, and the prompt the block."""
    if block.tags[0] in divide(answer)[2] and not block.closed:  # reasoning that never ends
        return Rendered(prompt, fault=THINKS_TWICE)
    whole = rendered(with_answer_alone(answer))
    rest = _after(prompt, block, whole)
    if rest is None:
        return Rendered(prompt, fault=NOT_CONTINUED)
    response = rest if block.closed else inside_open_block(block, answer) + rest
    if not _thinks_once(block, response, answer):
        return Rendered(prompt, fault=THINKS_TWICE)
    made = _checked(answer, prompt, response, own=block.closed and whole.startswith(prompt))
    return replace(made, closed=not block.closed and not (divide(answer)[0] or "").strip())


def _thinks_once(block: ThinkBlock | None, rest: str, answer: Message) -> bool:
    """Whether no block is opened or closed twice, but where the row itself does so.

    A block that the prompt opens must be closed.
    """
    said = json.dumps(answer, ensure_ascii=False)
    if block is not None and not block.closed and block.tags[1] not in rest:
        return False
    for tags in TAGS:
        before = (1, int(block.closed)) if block is not None and block.tags == tags else (0, 0)
        for tag, count in zip(tags, before, strict=True):
            if count + rest.count(tag) > max(1, said.count(tag)):
                return False
    return True


def _after(prompt: str, block: ThinkBlock, whole: str) -> str | None:
    """What follows the block in a conversation that has it, has an empty one, or has none."""
    base = prompt if whole.startswith(prompt) else block.base
    if not whole.startswith(base):
        return None
    opening, closing = map(re.escape, block.tags)
    empty = re.compile(rf"\s*({opening}\s*)?{closing}\s*")
    found = empty.match(whole, len(base))
    return whole[found.end() if found else len(base) :]


def _checked(answer: Message, prompt: str, response: str, *, own: bool = True) -> Rendered:
    """The response, unless the answer is not in it; with the fields that are not."""
    reasoning, _, text = divide(answer)
    if not _written(text, response) and "tool_calls" not in answer:
        return Rendered(prompt, fault=REWRITTEN)
    parts = {"reasoning": reasoning or ""} if "reasoning_content" not in answer else {}
    parts |= {key: value for key, value in answer.items() if key not in _LABELS}
    if "tool_calls" in answer:
        parts["content"] = text
    lost = tuple(
        key
        for key, value in parts.items()
        if isinstance(value, str) and not _written(value, response)
    )
    whole = text_of_response(answer)
    inside = next((t for t in (whole, whole.strip(), text, text.strip()) if t in response), "")
    return Rendered(prompt, response, inside, own=own, lost=lost)


def _written(text: str, rendered: str) -> bool:
    """Whether a text stands in a rendering, as it is or as JSON, white space apart."""
    bare = text.strip()
    if bare in rendered or json.dumps(bare, ensure_ascii=False)[1:-1] in rendered:
        return True
    return "".join(bare.split()) in "".join(rendered.split())


def _unwritten(
    chat: ChatTemplate, turns: Sequence[Message], record: PromptRecord, *, prompt: bool
) -> str | None:
    """What of tool calls and their results the template leaves out.

    It is tried with names and texts that stand nowhere else in the row.
    """
    calls = [call for turn in turns for call in turn.get("tool_calls", ())]
    results = [turn for turn in turns if turn["role"] == "tool"]
    if not calls and not results:
        return None
    numbers = itertools.count()
    probe = [
        {**turn, "content": f"tdistillresult{next(numbers)}"}
        if turn["role"] == "tool"
        else {**turn, "tool_calls": [_marked(call, next(numbers)) for call in turn["tool_calls"]]}
        if "tool_calls" in turn
        else turn
        for turn in turns
    ]
    text = chat.render(probe, record.tools, prompt=prompt, where=record.where)
    found = {kind: set(re.findall(rf"tdistill{kind}\d+", text)) for kind in _MARKS}
    if any(len(found[kind]) < len(calls) for kind in _MARKS[:3]):
        return CALL_LEFT_OUT
    return RESULT_LEFT_OUT if len(found["result"]) < len(results) else None


def _marked(call: Message, number: int) -> Message:
    arguments: Any = {f"tdistillkey{number}": f"tdistillvalue{number}"}
    if isinstance(call["function"]["arguments"], str):
        arguments = json.dumps(arguments)
    return {**call, "function": {"name": f"tdistillname{number}", "arguments": arguments}}


def _writes_tools(
    chat: ChatTemplate, turns: Sequence[Message], prompt: str, record: PromptRecord
) -> bool:
    return prompt != chat.render(turns, prompt=True, where=record.where)
