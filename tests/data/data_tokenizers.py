"""Tiny tokenizers for the tests of the data layer."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Strips the texts, and takes no system message.
TRIMMED = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The assistant's text is closed by words, not by a control token.
WORDY = (
    "{% for message in messages %}### {{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}### assistant: {% endif %}"
)
SENTENCES = ["Who wrote the play about the prince?", "William Shakespeare wrote the play."] * 3


def byte_level(
    chat_template: str | None = None, *, merges_lines: bool = False, **special: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; the end token ``<|endoftext|>`` is not the end of a turn.

    With ``merges_lines`` two line feeds in a row are one token, as in most tokenizers of today.
    """
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if merges_lines:
        lines = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\S+|\s+"), "isolated")
        bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.pre_tokenizer = pre_tokenizers.Sequence([lines, bytes_alone])
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([*SENTENCES, *(["a\n\nb"] * 9 if merges_lines else [])], trainer)
    options: dict[str, Any] = {"eos_token": "<|endoftext|>", **special}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=names[1:], **options
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def word_level(*, end: str | None = "</s>") -> PreTrainedTokenizerFast:
    """A word-level tokenizer that adds ``<s>`` and ``</s>`` and cannot split a special token."""
    words = dict.fromkeys(" ".join(SENTENCES).split())
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token=end
    )
