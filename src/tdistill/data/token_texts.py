"""What a token adds to a text: its blank included, which decoding it alone would drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens and blanks as they are."""
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What a token adds to a text that goes before it.

    SentencePiece drops the blank at the beginning of a text, so the token is read behind itself.
    """
    once, twice = (decode(tokenizer, [token] * times) for times in (1, 2))
    return twice[len(once) :] if twice.startswith(once) else once


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text before it."""
    return [token_text(tokenizer, token) for token in ids]
