"""Models stop at the token that ends turns in their chat template, wherever they generate."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tdistill.data import DataConfig
from tdistill.errors import DataError, ModelError
from tdistill.models.decoding import Decoding
from tdistill.models.generation import decoding_sampler, generate
from tdistill.models.language_model import LanguageModel, load, save
from tdistill.teacher.loading import load_stopping
from tdistill.training.student import drop_layers
from tiny import VOCABULARY, tiny_model, tokenizer

TEMPLATE = (
    "{% for m in messages %}<|user|> {{ m['content'] }} <|stop|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
STOP = VOCABULARY


def checkpoint(folder: Path, template: str | None = TEMPLATE, rows: int = 72) -> Path:
    """As Qwen's base models: tokenizer and generation config name another end."""
    own: Any = copy.deepcopy(tokenizer())
    own.add_special_tokens({"additional_special_tokens": ["<|stop|>"]})
    own.chat_template = template
    save(LanguageModel(tiny_model(vocab_size=rows), own, "base"), folder)
    return folder


def writes_a_stop(lm: LanguageModel) -> list[int]:
    """What is generated where the third token is the end of a turn."""
    steps: list[int] = []

    def sample(logits: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        steps.append(0)
        return torch.tensor([STOP if len(steps) == 3 else 5] * len(active))

    return list(generate(lm, [[3, 4]], sample, max_new_tokens=6)[0].ids)


def test_the_end_of_a_turn_ends_responses(tmp_path: Path):
    folder = checkpoint(tmp_path)
    assert load(folder).end_ids == (1,)
    lm = load_stopping(folder)
    assert lm.end_ids == (1, STOP)
    assert writes_a_stop(lm) == [5, 5, STOP]
    assert writes_a_stop(load(folder)) == [5, 5, STOP, 5, 5, 5]


def test_what_is_made_of_it_and_saved_stops_there_too(tmp_path: Path):
    student = drop_layers(load_stopping(checkpoint(tmp_path / "teacher")), (0, 2))
    save(student, tmp_path / "student")
    written = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [1, STOP]
    assert writes_a_stop(load(tmp_path / "student")) == [5, 5, STOP]


def test_without_a_chat_template_nothing_changes(tmp_path: Path):
    lm = load_stopping(checkpoint(tmp_path, template=None))
    assert lm.end_ids == (1,)
    sampler = decoding_sampler(Decoding(greedy=True), 1, seed=0)
    assert len(generate(lm, [[3]], sampler, max_new_tokens=2)) == 1


def test_a_template_that_ends_with_no_token_leaves_the_tokenizers(tmp_path: Path):
    plain = TEMPLATE.replace(" <|stop|>", " .")
    assert load_stopping(checkpoint(tmp_path, template=plain)).end_ids == (1,)


def test_an_end_that_the_model_cannot_write_is_refused(tmp_path: Path):
    folder = checkpoint(tmp_path, rows=VOCABULARY)
    with pytest.raises(ModelError, match=r"can write token 64, .* found one of 64 tokens"):
        load_stopping(folder)


def test_a_broken_template_matters_only_where_it_is_used(tmp_path: Path):
    folder = checkpoint(tmp_path, template="{{ raise_exception('no') }}")
    with pytest.raises(DataError):
        load_stopping(folder)
    assert load_stopping(folder, DataConfig(template="plain")).end_ids == (1,)


def test_the_template_that_the_recipe_names_says_where_a_turn_ends(tmp_path: Path):
    own: Any = copy.deepcopy(tokenizer())
    own.add_special_tokens({"additional_special_tokens": ["<|stop|>", "<|over|>"]})
    own.chat_template = {"default": TEMPLATE, "other": TEMPLATE.replace("<|stop|>", "<|over|>")}
    save(LanguageModel(tiny_model(vocab_size=72), own, "base"), tmp_path)
    assert load_stopping(tmp_path).end_ids == (1, STOP)
    named = DataConfig(template_name="other")
    assert load_stopping(tmp_path, named).end_ids == (1, STOP + 1)
