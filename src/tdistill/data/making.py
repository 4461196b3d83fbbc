"""From rows in one form to prompts and responses in tokens, with what became of each row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tdistill.data.chat import ChatTemplate, chat_template_of
from tdistill.data.config import DataConfig, Template
from tdistill.data.conversation import Rendered, render_row
from tdistill.data.formats import (
    Prompt,
    PromptRecord,
    Response,
    is_blank_response,
    text_of_response,
)
from tdistill.data.messages import Message
from tdistill.data.rendering import render_prompt
from tdistill.data.response_tokens import ResponseTokeniser, ResponseTokens, all_text
from tdistill.data.tokens import TurnEnd, encode_prompts, turn_end
from tdistill.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """One prompt with its responses.

    Attributes:
        prompt: the rendered prompt.
        prompt_ids: its tokens.
        references: the texts of the row's responses, in order; may be empty.
        reference_ids: tokens of the first, with the end token unless it was cut; empty where there
            is no reference, or where the template cannot express it.
        reference_ended: whether ``reference_ids`` holds the end token.
        question: what the user asks, without template, for showing.
        row_prompt: the prompt as the source has it, before rendering.
        row_response: the first response likewise.
        tools: JSON schemas of the tools that the row offers.
        system: the row's own system message, where a column gives it.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    references: tuple[str, ...]
    reference_ids: tuple[int, ...]
    reference_ended: bool
    question: str = ""
    row_prompt: Prompt = ""
    row_response: Response = ""
    tools: tuple[Message, ...] = ()
    system: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        record: the row.
        example: None where the template cannot express the prompt.
        fault: why prompt or response is not the template's own text; None: it is.
        compared: whether the response's tokens were compared with the template's own.
        own: whether they were equal, without a think block put in.
        closed: whether a think block was closed before an answer without reasoning.
        lost: fields of the row that the template does not write.
        wrote_end: whether the response brought its own end token.
    """

    record: PromptRecord
    example: Example | None
    fault: str | None = None
    compared: bool = False
    own: bool = False
    closed: bool = False
    lost: tuple[str, ...] = ()
    wrote_end: bool = False


def make_examples(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    records: Sequence[PromptRecord],
    config: DataConfig,
    chat: ChatTemplate | None = None,
) -> list[Outcome]:
    """Render and tokenise records.

    Args:
        tokenizer: the tokenizer of teacher and student.
        template: ``chat``, ``alpaca`` or ``plain``.
        records: rows whose prompt is not blank.
        config: the system message, and the longest response in tokens.
        chat: the chat template with its variables; None: as it stands.

    Returns:
        What became of each record, however long its prompt.

    Raises:
        DataError: a row that the template cannot show, or whose response goes on after its end.
        ModelError: the tokenizer has no end token.
    """
    if template == "chat":
        chat = chat or chat_template_of(tokenizer, config)
    end = turn_end(tokenizer, template, chat)
    pairs = [_without_end(record, tokenizer, end) for record in records]
    rows = [record for record, _ in pairs]
    if chat is not None:
        rendered = [render_row(chat, record, config.system) for record in rows]
    else:
        rendered = [_plainly(template, record, config) for record in rows]
    prompt_ids = encode_prompts(tokenizer, template, [row.prompt or "" for row in rendered])
    tokeniser = ResponseTokeniser(tokenizer, end)
    if chat is not None:
        rendered = [tokeniser.apart(*pair) for pair in zip(rendered, prompt_ids, strict=True)]
        tokens = tokeniser.of_chat(rows, rendered, prompt_ids)
    else:
        tokens = tokeniser.of_text(rows, rendered)
    most = config.max_response_tokens
    return [
        _outcome(record, row, ids, response, most=most, wrote_end=wrote_end)
        for (record, wrote_end), row, ids, response in zip(
            pairs, rendered, prompt_ids, tokens, strict=True
        )
    ]


def _plainly(template: Template, record: PromptRecord, config: DataConfig) -> Rendered:
    prompt = render_prompt(template, record, config.system)
    lost = ("system",) if template == "alpaca" and record.system else ()
    if not record.references:
        return Rendered(prompt, lost=lost)
    response = record.references[0]
    if not isinstance(response, str):
        if response.get("tool_calls"):
            raise DataError(
                f"{record.where}: expected a response of text, all that the {template} template "
                "can write; found a tool call. Use a tokenizer with a chat template."
            )
        lost += tuple(key for key in ("reasoning_content",) if key in response)
    return Rendered(prompt, text_of_response(response), lost=lost)


def _without_end(
    record: PromptRecord, tokenizer: PreTrainedTokenizerBase, end: TurnEnd
) -> tuple[PromptRecord, bool]:
    """The row without the end token that its responses themselves write last, and whether they do.

    Raises:
        DataError: a response holds the end token before its end.
    """
    name = str(tokenizer.convert_ids_to_tokens(end.id))
    names = name, str(tokenizer.eos_token or name)
    cut = [_cut(response, names) for response in record.references]
    for response in cut:
        if name in all_text(response):
            raise DataError(
                f"{record.where}: expected a response that ends with its end token; found {name}, "
                "which ends it, before its end. Remove it from the text, or end the response there."
            )
    if tuple(cut) == record.references:
        return record, False
    said = tuple(response for response in cut if not is_blank_response(response))
    return replace(record, references=said), True


def _cut(response: Response, names: tuple[str, str]) -> Response:
    text = text_of_response(response)
    short = text
    while (bare := short.rstrip()).endswith(names):
        short = next(bare.removesuffix(name) for name in names if bare.endswith(name))
    if short == text:
        return response
    return short if isinstance(response, str) else {**response, "content": short}


def _outcome(
    record: PromptRecord,
    row: Rendered,
    prompt_ids: Sequence[int],
    response: ResponseTokens,
    *,
    most: int,
    wrote_end: bool,
) -> Outcome:
    """What became of a row, its response cut to so many tokens."""
    example = None
    if row.prompt is not None:
        references = list(map(_shown, record.references))
        if response.text is not None:
            references[0] = response.text
        example = Example(
            row.prompt,
            tuple(prompt_ids),
            tuple(references),
            response.ids[:most],
            # The end token counts: a response that fills the limit without it is cut.
            bool(response.ids) and len(response.ids) <= most,
            record.question,
            record.prompt,
            record.references[0] if record.references else "",
            record.tools,
            record.system,
        )
    return Outcome(
        record,
        example,
        response.fault or row.fault,
        compared=response.compared,
        own=response.compared and response.fault is None and row.own,
        closed=row.closed,
        lost=row.lost,
        wrote_end=wrote_end,
    )


def _shown(response: Response) -> str:
    """A response as text, its tool calls as JSON."""
    calls = [] if isinstance(response, str) else response.get("tool_calls", [])
    written = (json.dumps(call["function"], ensure_ascii=False) for call in calls)
    return "\n".join(filter(None, [text_of_response(response), *written]))
