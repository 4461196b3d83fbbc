"""Models with tokenizers: identity, loading, saving, shared vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast

import tiny
from tdistill.errors import ModelError
from tdistill.models.adoption import shared_vocabulary
from tdistill.models.language_model import (
    LanguageModel,
    inner_model,
    load,
    model_fingerprint,
    output_rows,
    save,
    tokenizer_fingerprint,
)
from tdistill.models.weights import WeightsConfig
from tiny import FAMILIES, VOCABULARY, tiny_lm, tiny_model, tokenizer

# PEFT asks transformers for a property that transformers has renamed.
peft_asks = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def fresh_tokenizer() -> Any:
    """A tokenizer of its own, so that a test may change it."""
    return tokenizer.__wrapped__()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[3, 4, 5, 9]])).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_loaded_the_same(family: str, tmp_path: Path):
    lm = tiny_lm(family)
    save(lm, tmp_path)
    again = load(tmp_path, device="cpu")
    assert type(again.model) is type(lm.model)
    assert not again.model.training
    torch.testing.assert_close(logits(again.model), logits(lm.model), atol=1e-5, rtol=1e-5)
    for name, weight in lm.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight)
    assert model_fingerprint(again.model) == model_fingerprint(lm.model)
    assert tokenizer_fingerprint(again.tokenizer) == tokenizer_fingerprint(lm.tokenizer)
    assert again.name == str(tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob("*.bin"))


def test_the_dtype_of_the_weights_is_chosen(tmp_path: Path):
    save(tiny_lm(), tmp_path)
    assert load(tmp_path).model.dtype == torch.float32
    assert load(tmp_path, weights=WeightsConfig("float16")).model.dtype == torch.float16


def truncate_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def ask_for_more_layers(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 5')
    )


def ask_for_other_shapes(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 16', '"hidden_size": 8'))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
        truncate_weights,
        ask_for_more_layers,
        ask_for_other_shapes,
    ],
)
def test_a_folder_without_a_whole_model_is_refused(
    damage: Callable[[Path], object], tmp_path: Path
):
    save(tiny_lm(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match="expected") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_weights_are_named(tmp_path: Path):
    save(tiny_lm(), tmp_path)
    ask_for_more_layers(tmp_path)
    with pytest.raises(ModelError, match=r"18 missing \(first: model\.layers\.3\."):
        load(tmp_path)


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_a_folder_without_a_model_is_refused(folder: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=folder):
        load(tmp_path / folder)


def test_the_model_fingerprint_reacts_to_weights_names_and_shapes():
    first = model_fingerprint(tiny_model())
    assert model_fingerprint(tiny_model()) == first
    assert model_fingerprint(tiny_model(seed=1)) != first
    assert model_fingerprint(tiny_model(num_hidden_layers=2)) != first
    assert model_fingerprint(tiny_model("qwen2")) != first
    changed: Any = tiny_model()
    changed.model.norm.weight.data[3] += 1e-3
    assert model_fingerprint(changed) != first
    assert model_fingerprint(nn.DataParallel(tiny_model())) == first  # pyright: ignore


def test_the_model_fingerprint_reads_shapes_and_names():
    tall, wide = nn.Linear(2, 8, bias=False), nn.Linear(8, 2, bias=False)
    wide.weight.data = tall.weight.data.reshape(2, 8)
    models: list[Any] = [tall, wide, nn.ModuleDict({"a": tall}), nn.ModuleDict({"b": tall})]
    assert len({model_fingerprint(model) for model in models}) == 4


def test_the_model_fingerprint_reads_values_not_storage():
    model: Any = tiny_model()
    half = tiny_model().to(torch.float16)
    widened = tiny_model().to(torch.float16).to(torch.float32)
    assert model_fingerprint(half) == model_fingerprint(widened) != model_fingerprint(model)


def test_the_tokenizer_fingerprint_reacts_to_vocabulary_and_end_token():
    first = tokenizer_fingerprint(fresh_tokenizer())
    assert tokenizer_fingerprint(fresh_tokenizer()) == first
    more = fresh_tokenizer()
    more.add_tokens(["extra"])
    assert tokenizer_fingerprint(more) != first
    other_end = fresh_tokenizer()
    other_end.eos_token = "no"
    assert tokenizer_fingerprint(other_end) != first


def test_padded_matrices_share_the_tokenizers_vocabulary():
    teacher, student = tiny_lm(), tiny_lm("qwen2", vocab_size=VOCABULARY + 8)
    assert (output_rows(teacher.model), output_rows(student.model)) == (VOCABULARY, VOCABULARY + 8)
    assert shared_vocabulary(teacher, student) == shared_vocabulary(student, teacher) == VOCABULARY
    assert student.vocabulary_size == VOCABULARY


def test_a_matrix_smaller_than_the_tokenizer_limits_the_vocabulary():
    assert tiny_lm(vocab_size=60).vocabulary_size == 60
    assert shared_vocabulary(tiny_lm(), tiny_lm(vocab_size=60)) == 60


def test_end_ids_join_the_tokenizer_and_the_generation_config():
    lm = tiny_lm()
    assert lm.end_ids == (1,)
    lm.model.generation_config.eos_token_id = [60, 1]
    assert lm.end_ids == (1, 60)
    lm.model.generation_config.eos_token_id = 61
    assert lm.end_ids == (1, 61)


def test_a_model_that_cannot_end_is_refused():
    endless = fresh_tokenizer()
    endless.eos_token = None
    lm = replace(tiny_lm(), tokenizer=endless)
    lm.model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="end-of-sequence token"):
        _ = lm.end_ids


def test_the_padding_id_is_one_that_the_network_can_read():
    bare = fresh_tokenizer()
    bare.pad_token = None
    assert replace(tiny_lm(), tokenizer=bare).pad_id == 1
    bare.pad_token = "<unk>"
    assert replace(tiny_lm(), tokenizer=bare).pad_id == 0
    bare.add_special_tokens({"pad_token": "<pad>"})  # id 64: the matrix has 64 rows
    assert (bare.pad_token_id, replace(tiny_lm(), tokenizer=bare).pad_id) == (64, 1)
    bare.eos_token = "<pad>"
    lm = replace(tiny_lm(), tokenizer=bare)
    lm.model.generation_config.eos_token_id = None
    assert (lm.end_ids, lm.pad_id) == ((64,), 0)


def test_the_vocabulary_ends_at_the_largest_id():
    """Ids may have gaps: the last of fewer tokens is 90."""
    words = {word: i for word, i in fresh_tokenizer().get_vocab().items()} | {"far": 90, "x": 70}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    gaps = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    assert len(gaps) < 70
    assert LanguageModel(tiny_model(vocab_size=96), gaps, "gaps").vocabulary_size == 91
    assert LanguageModel(tiny_model(vocab_size=80), gaps, "gaps").vocabulary_size == 80


def test_tied_weights_are_counted_once():
    tied, untied = tiny_lm(tie_word_embeddings=True), tiny_lm(tie_word_embeddings=False)
    assert untied.num_parameters - tied.num_parameters == tiny.VOCABULARY * 16


@peft_asks
def test_wrappers_are_seen_through():
    from peft import LoraConfig, get_peft_model

    model = tiny_model()
    wrapped = nn.DataParallel(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    assert inner_model(wrapped) is model
    assert output_rows(wrapped) == VOCABULARY  # pyright: ignore
