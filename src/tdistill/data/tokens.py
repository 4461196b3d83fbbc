"""Tokenise prompts and responses, so that the boundary and the end are never in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdistill.data.config import DataConfig, Template
from tdistill.data.formats import Prompt, PromptRecord
from tdistill.data.rendering import around_response, render_prompt, strips_response
from tdistill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """One prompt with its responses.

    Attributes:
        prompt: the rendered prompt.
        prompt_ids: its tokens.
        references: the responses of the row, in order; may be empty.
        reference_ids: tokens of the first, with the end token unless it was cut; empty where there
            is no reference.
        reference_ended: whether ``reference_ids`` holds the end token.
        question: what the user asks, without template, for showing.
        row_prompt: the prompt as the source has it, before rendering.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    references: tuple[str, ...]
    reference_ids: tuple[int, ...]
    reference_ended: bool
    question: str = ""
    row_prompt: Prompt = ""


def make_examples(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    records: Sequence[PromptRecord],
    config: DataConfig,
) -> list[Example]:
    """Render and tokenise records.

    Args:
        tokenizer: the tokenizer of teacher and student.
        template: ``chat``, ``alpaca`` or ``plain``.
        records: rows whose prompt is not blank.
        config: the system message, and the longest response in tokens.

    Returns:
        One example for each record, however long its prompt.

    Raises:
        DataError: the template refuses a row.
        ModelError: the tokenizer has no end token.
    """
    end = response_end_id(tokenizer, template)
    strips = strips_response(tokenizer, template)
    prompts = [render_prompt(tokenizer, template, record, config.system) for record in records]
    prompt_ids = encode_prompts(tokenizer, template, prompts)
    firsts = [record.references[0] if record.references else "" for record in records]
    responses = encode_responses(tokenizer, [text.strip() if strips else text for text in firsts])
    examples: list[Example] = []
    for record, prompt, ids, response in zip(records, prompts, prompt_ids, responses, strict=True):
        # The end token counts: a response that fills the limit without it is cut.
        ended = bool(record.references) and len(response) < config.max_response_tokens
        cut = response[: config.max_response_tokens] if record.references else []
        tokens = (*cut, end) if ended else tuple(cut)
        as_shown, as_read = record.question, record.prompt
        examples.append(
            Example(prompt, tuple(ids), record.references, tokens, ended, as_shown, as_read)
        )
    return examples


def response_end_id(tokenizer: PreTrainedTokenizerBase, template: Template) -> int:
    """The token that ends a response.

    For ``chat``, the first added or special token that the template puts after the assistant's text
    (``<|im_end|>``, ``<|eot_id|>``); where it puts none, and for the other templates, the
    tokenizer's end token.

    Args:
        tokenizer: the tokenizer.
        template: ``chat``, ``alpaca`` or ``plain``.

    Returns:
        A token id.

    Raises:
        ModelError: the tokenizer has no end token either.
    """
    if template == "chat":
        _, tail = around_response(tokenizer)
        controls = _control_ids(tokenizer)
        for token in encode_rendered(tokenizer, tail):
            if token in controls:
                return token
    end = end_token_id(tokenizer)
    if end is None:
        raise ModelError(
            "tokenizer: expected an end token, since a response must be able to end; found none "
            f"({tokenizer.name_or_path or 'unnamed'}). Set tokenizer.eos_token."
        )
    return end


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The tokenizer's end token, as one id."""
    end = tokenizer.eos_token_id
    return end if isinstance(end, int) else None


def splits_special_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer can read a spelt-out special token as plain text."""
    names = [name for name in tokenizer.all_special_tokens if name != tokenizer.unk_token]
    rows = encode_responses(tokenizer, names)
    return not any(
        tokenizer.convert_tokens_to_ids(name) in row for name, row in zip(names, rows, strict=True)
    )


def spells_special(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text holds the spelling of a special token."""
    return any(name in text for name in tokenizer.all_special_tokens)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, template: Template, prompts: Sequence[str]
) -> list[list[int]]:
    """Token ids of rendered prompts.

    A chat template writes its own start token, so none is added to it; the others get the start
    token of the tokenizer but never an end token. ``alpaca`` reads spelt-out special tokens as
    plain text; ``chat`` and ``plain`` prompts may hold control tokens by design.

    Args:
        tokenizer: the tokenizer.
        template: ``chat``, ``alpaca`` or ``plain``.
        prompts: rendered prompts.

    Returns:
        One list of ids for each prompt.
    """
    if template == "chat":
        return _tokenise(tokenizer, prompts, add_special_tokens=False)
    split = {"split_special_tokens": True} if template == "alpaca" else {}
    rows = _tokenise(tokenizer, prompts, add_special_tokens=True, **split)
    end = end_token_id(tokenizer)
    for row, prompt in zip(rows, prompts, strict=True):
        written = tokenizer.eos_token is not None and prompt.endswith(str(tokenizer.eos_token))
        if len(row) > 1 and row[-1] == end and not written:
            row.pop()
    return rows


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[str]
) -> list[list[int]]:
    """Token ids of responses, without start and end token, special tokens read as plain text."""
    return _tokenise(tokenizer, responses, add_special_tokens=False, split_special_tokens=True)


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that a chat template wrote."""
    return _tokenise(tokenizer, [text], add_special_tokens=False)[0]


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: Any
) -> list[list[int]]:
    if not texts:
        return []
    # verbose=False: the configuration limits the lengths, not the tokenizer's model_max_length.
    encoded = tokenizer(
        list(texts),
        return_attention_mask=False,
        padding=False,
        truncation=False,
        verbose=False,
        **options,
    )
    return [list(row) for row in encoded["input_ids"]]  # pyright: ignore


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    # Some tokenizers add runs of white space as tokens; those control nothing.
    added = tokenizer.added_tokens_decoder
    named = {token for token, content in added.items() if str(content).strip()}
    return named | set(tokenizer.all_special_ids)
