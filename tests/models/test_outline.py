"""A model without its weights is, but for them, the model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from tdistill.errors import ModelError
from tdistill.models.language_model import LanguageModel, load, save
from tdistill.models.outline import load_outline
from tdistill.models.positions import position_limit
from tdistill.teacher.loading import load_stopping, stopping
from tiny import VOCABULARY, tiny_lm, tokenizer

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|stop|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_the_model_but_for_its_weights(family: str, tmp_path: Path):
    own = copy.deepcopy(tokenizer())
    own.add_special_tokens({"additional_special_tokens": ["<|stop|>"]})
    own.chat_template = TEMPLATE
    lm = tiny_lm(family, vocab_size=72)
    assert lm.model.generation_config is not None
    lm.model.generation_config.eos_token_id = [1, 5]
    save(LanguageModel(lm.model, own, "m"), tmp_path)
    whole = load_stopping(tmp_path)
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    outline = stopping(load_outline(tmp_path))
    assert {weight.device.type for weight in outline.model.parameters()} == {"meta"}
    assert outline.end_ids == whole.end_ids == (1, 5, VOCABULARY)
    for name in ("vocabulary_size", "pad_id", "num_parameters", "name"):
        assert getattr(outline, name) == getattr(whole, name), name
    assert position_limit(outline.model) == position_limit(whole.model)
    with pytest.raises(ModelError):
        load(tmp_path)


def test_no_model_is_no_outline(tmp_path: Path):
    with pytest.raises(ModelError):
        load_outline(tmp_path)
