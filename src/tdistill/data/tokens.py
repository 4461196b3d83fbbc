"""Tokenise prompts and responses, so that the boundary and the end are never in doubt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdistill.data.chat import ChatTemplate, TemplateRefusal, chat_template_of
from tdistill.data.config import DataConfig, Template
from tdistill.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "PROBE"


@dataclass(frozen=True)
class TurnEnd:
    """How an assistant's turn ends.

    Attributes:
        id: the token that ends a response.
        written: whether the template writes it at the end of a conversation.
        trimmed: white space that the template writes after the text and that no response holds,
            since the end token takes its place.
    """

    id: int
    written: bool = False
    trimmed: str = ""


def response_end_id(
    tokenizer: PreTrainedTokenizerBase, template: Template, chat: ChatTemplate | None = None
) -> int:
    """The token that ends a response, as `turn_end` finds it."""
    return turn_end(tokenizer, template, chat).id


def turn_end(
    tokenizer: PreTrainedTokenizerBase, template: Template, chat: ChatTemplate | None = None
) -> TurnEnd:
    """The token that ends a response.

    For ``chat``, an added or special token that the template puts after the assistant's text, in
    the last turn and before another one alike (``<|im_end|>``, ``<|eot_id|>``); of several in a row
    the tokenizer's end token, else the last. A template that writes nothing there ends a turn by
    opening the next, if that begins with such a token; where it does not, and for the other
    templates, the tokenizer's end token ends a response.

    Args:
        tokenizer: the tokenizer.
        template: ``chat``, ``alpaca`` or ``plain``.
        chat: the chat template with its variables; None: the default without any, or the first of
            several without a default, since those of one tokenizer end turns alike.

    Raises:
        ModelError: the tokenizer has no end token either.
        DataError: the template refuses a question and its answer, or leaves the answer out.
    """
    tail = ""
    if template == "chat":
        tail, following = _after_answer(chat or _some_template(tokenizer))
        both = _common_start(tail, following)
        if found := _controls_in(tokenizer, both):
            own = end_token_id(tokenizer)
            return TurnEnd(own if own is not None and own in found else found[-1], written=True)
        if found := _controls_in(tokenizer, tail):
            return TurnEnd(found[0], written=True)
        rest = encode_rendered(tokenizer, following) if not tail else []
        if rest and rest[0] in _closing_ids(tokenizer):
            return TurnEnd(rest[0])
    end = end_token_id(tokenizer)
    if end is None:
        raise ModelError(
            "tokenizer: expected an end token, since a response must be able to end; found none "
            f"({tokenizer.name_or_path or 'unnamed'}). Set tokenizer.eos_token."
        )
    return TurnEnd(end, trimmed=tail[len(tail.rstrip()) :])


def _some_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    templates: Any = tokenizer.chat_template
    several = isinstance(templates, dict) and "default" not in templates
    name = min(templates) if several else None
    return chat_template_of(tokenizer, DataConfig(template_name=name))


def _after_answer(chat: ChatTemplate) -> tuple[str, str]:
    """What the template writes after an answer: at the end, and before another question."""
    turns = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": _PROBE},
    ]
    text = chat.render(turns, prompt=False)
    _, found, tail = text.rpartition(_PROBE)
    if not found:
        raise DataError(
            "data.template: expected a chat template that writes the assistant's text; "
            f"found one that leaves it out and writes {text[:200]}. "
            "Set another tokenizer.chat_template."
        )
    try:
        longer = chat.render([*turns, {"role": "user", "content": "question"}], prompt=False)
    except TemplateRefusal:
        return tail, ""
    return tail, longer.rpartition(_PROBE)[2]


def _common_start(a: str, b: str) -> str:
    same = (x == y for x, y in zip(a, b, strict=False))
    return a[: next((i for i, equal in enumerate(same) if not equal), min(len(a), len(b)))]


def _controls_in(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The first run of control tokens in a text, without the start token."""
    controls = _closing_ids(tokenizer)
    ids = encode_rendered(tokenizer, text)
    first = next((i for i, token in enumerate(ids) if token in controls), len(ids))
    return list(itertools.takewhile(controls.__contains__, ids[first:]))


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


def _closing_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that can end a turn: added and special ones, but for the start token."""
    # Some tokenizers add runs of white space as tokens; those control nothing.
    added = tokenizer.added_tokens_decoder
    named = {token for token, content in added.items() if str(content).strip()}
    return {
        token for token in named | set(tokenizer.all_special_ids) if token != tokenizer.bos_token_id
    }
