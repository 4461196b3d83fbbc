"""Teacher and student of one family: whether their ids agree, and whose special tokens are used.

What must agree is what the ids of ordinary tokens mean, since top-p sets are token ids. Special
tokens, templates, end tokens and padding differ between an instruct model and its base; the student
takes the teacher's.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from tdistill.errors import ModelError, excerpt
from tdistill.models.language_model import LanguageModel, output_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = "It's 12345 o'clock;  x_y = [0.5]\n\tÉté, 漢字! "


def check_same_tokenizer(teacher: LanguageModel, student: LanguageModel) -> None:
    """Refuse a student whose ids of ordinary tokens mean something else than the teacher's.

    Added and special tokens may be renamed, or be there on one side only.

    Raises:
        ModelError: with the first id that differs.
    """
    theirs, ours = _tokens(teacher.tokenizer), _tokens(student.tokenizer)
    if theirs == ours:
        return
    special = [_special_ids(lm.tokenizer) for lm in (teacher, student)]
    differ = [
        token
        for token in sorted({*theirs, *ours})
        if theirs.get(token) != ours.get(token)
        and not all(
            token in known or token not in tokens
            for known, tokens in zip(special, (theirs, ours), strict=True)
        )
    ]
    if differ:
        first = differ[0]
        raise ModelError(
            f"tokenizers differ: teacher {teacher.name} has {len(theirs)} tokens, student "
            f"{student.name} has {len(ours)}, and {len(differ)} ids are not the same (id {first}: "
            f"{_shown(theirs, first)} and {_shown(ours, first)}); top-p sets are token ids, so "
            "both must share one tokenizer: take a student of the same family, or make one with "
            "`tdistill student`"
        )


def shared_vocabulary(teacher: LanguageModel, student: LanguageModel) -> int:
    """Tokens that both models can score; both are cut to it before normalising.

    Raises:
        ModelError: the tokenizers differ.
    """
    check_same_tokenizer(teacher, student)
    return min(teacher.vocabulary_size, student.vocabulary_size)


def adopt(student: LanguageModel, teacher: LanguageModel) -> tuple[LanguageModel, list[str]]:
    """A student that is asked, and that ends, as its teacher is and does.

    It takes the teacher's tokenizer with the chat template, and the generation config with all end
    tokens. Tokens that only the teacher has get new rows, the mean of the others.

    Args:
        student: changed in place.
        teacher: of the same ids.

    Returns:
        The student with the teacher's tokenizer, and what was changed, a line each.

    Raises:
        ModelError: the tokenizers differ.
    """
    check_same_tokenizer(teacher, student)
    changes = _changes(student, teacher)
    missing = teacher.vocabulary_size - output_rows(student.model)
    if missing > 0:
        _grow(student.model, teacher.vocabulary_size)
        changes.append(f"{missing} tokens that it lacks get new embeddings, the mean of the others")
    model: Any = student.model
    model.generation_config = copy.deepcopy(teacher.model.generation_config)
    config, tokenizer = model.config.get_text_config(), teacher.tokenizer
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token: Any = getattr(tokenizer, name)
        if token is not None and token < output_rows(model):
            setattr(config, name, token)
    return LanguageModel(model, tokenizer, student.name), changes


def _changes(student: LanguageModel, teacher: LanguageModel) -> list[str]:
    """Differences that are resolved in the teacher's favour."""
    own, others = student.tokenizer, teacher.tokenizer
    lines = []
    for name in ("bos_token", "eos_token", "pad_token"):
        before, after = (getattr(side, name) for side in (own, others))
        if before != after:
            lines.append(f"{name} {excerpt(before or 'none')} becomes {excerpt(after or 'none')}")
    if student.end_ids != teacher.end_ids:
        ends = ", ".join(excerpt(others.convert_ids_to_tokens(i)) for i in teacher.end_ids)
        lines.append(f"responses end at {ends}")
    if own.chat_template != others.chat_template:
        taken = "the teacher's" if others.chat_template else "left out: the teacher has none"
        lines.append(f"the chat template is {taken}")
    theirs, ours = _tokens(others), _tokens(own)
    renamed = [i for i in ours if i in theirs and ours[i] != theirs[i]]
    if renamed:
        first = f"{excerpt(ours[renamed[0]])} becomes {excerpt(theirs[renamed[0]])}"
        lines.append(f"{len(renamed)} special tokens are renamed ({first})")
    pieces = [side.encode(_SAMPLE, add_special_tokens=False) for side in (own, others)]
    if pieces[0] != pieces[1]:
        lines.append("text is split into tokens as for the teacher, which it was not before")
    return lines


@torch.no_grad()
def _grow(model: Any, rows: int) -> None:
    """More tokens, whose rows are the mean of those there were."""
    before = model.get_input_embeddings().weight.shape[0], output_rows(model)
    model.resize_token_embeddings(rows, mean_resizing=False)
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    for layer, known in zip(layers, before, strict=True):
        for weight in (layer.weight, getattr(layer, "bias", None)):
            if weight is not None and len(weight) > known:
                weight[known:] = weight[:known].mean(0)


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {token: text for text, token in tokenizer.get_vocab().items()}


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}


def _shown(tokens: dict[int, str], token: int) -> str:
    return repr(tokens[token])[:40] if token in tokens else "none"
