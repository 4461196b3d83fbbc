"""A model without its weights: what it is, for whom somebody else has them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tdistill.files import hub_name, resolve_path
from tdistill.models.adapters import adapter_bases
from tdistill.models.language_model import LanguageModel, load_config, load_tokenizer


def load_outline(path: str | Path) -> LanguageModel:
    """Tokenizer, configuration, shapes and end tokens of a model; its weights take no memory.

    Args:
        path: as for :func:`tdistill.models.language_model.load`.

    Raises:
        ModelError: there is no such model.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    place = resolve_path(str(path))
    config = load_config(place)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    source = (adapter_bases(place) or [place])[-1]
    with suppress(OSError, ValueError):  # it has none of its own
        model.generation_config = GenerationConfig.from_pretrained(hub_name(source) or source)
    return LanguageModel(model.eval(), load_tokenizer(place), place)
