"""Models as they are used with data: they stop where their chat template ends a turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdistill.data.chat import chat_template_of
from tdistill.data.config import DataConfig
from tdistill.data.tokens import response_end_id
from tdistill.errors import DataError
from tdistill.models import language_model
from tdistill.models.language_model import LanguageModel, also_end_at


def load_stopping(
    path: str | Path, data: DataConfig | None = None, **options: Any
) -> LanguageModel:
    """A model that ends responses also at the token that ends turns in its chat template.

    Tokenizer and generation config may name another: those of base checkpoints do.

    Args:
        path: of the model, see :func:`tdistill.models.language_model.load`.
        data: says which chat template, with which variables; None: the default, without any.
        options: for loading.

    Raises:
        DataError: the chat template that is to be used cannot render a conversation.
        ModelError: there is no such model, or it has no token for the end of a turn.
    """
    return stopping(language_model.load(path, **options), data)


def stopping(lm: LanguageModel, data: DataConfig | None = None) -> LanguageModel:
    """The model itself, which also ends responses where its chat template ends a turn.

    Args:
        lm: changed in place.
        data: see :func:`load_stopping`.

    Raises:
        DataError: the chat template that is to be used cannot render a conversation.
        ModelError: it has no token for the end of a turn.
    """
    if not lm.tokenizer.chat_template:
        return lm
    try:
        chat = None if data is None else chat_template_of(lm.tokenizer, data)
        also_end_at(lm, response_end_id(lm.tokenizer, "chat", chat))
    except DataError:
        if data is None or data.template in ("auto", "chat"):
            raise
    return lm
