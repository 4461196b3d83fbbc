"""What a token adds to a text, for tokenizers that mark blanks in their own ways."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tdistill.data.token_texts import token_texts

PIECES = ["<unk>", "</s>", "▁Tim", "▁was", "▁happy", "ily", "▁", "<0xC3>", "<0xA9>", "."]
TEXTS = ["<unk>", "</s>", " Tim", " was", " happy", "ily", " "]


def sentence_piece() -> PreTrainedTokenizerFast:
    """The decoder of Llama: blanks for marks, bytes for byte tokens, no blank at the beginning."""
    inner = Tokenizer(models.WordLevel({p: i for i, p in enumerate(PIECES)}, unk_token="<unk>"))
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


def test_the_blank_of_a_piece_is_kept():
    tokenizer = sentence_piece()
    assert tokenizer.decode([3]) == "was"  # what it says alone
    assert token_texts(tokenizer, range(7)) == TEXTS
    assert "".join(token_texts(tokenizer, [2, 3, 4, 5, 9])) == " Tim was happyily."


def test_a_byte_of_a_character_is_one_sign():
    assert [len(text) for text in token_texts(sentence_piece(), [7, 8])] == [1, 1]


@pytest.mark.parametrize("pieces", [["Ġa", "b", "Ċ"]])
def test_blanks_of_byte_pairs_stay_what_they_are(pieces: list[str]):
    inner = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="b"))
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert token_texts(tokenizer, [0, 1, 2]) == [" a", "b", "\n"]
