"""Adapters whose weights meet those of a tied layer, of another base, or of a base of a base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tdistill.errors import ModelError
from tdistill.models.adapters import adapter_bases
from tdistill.models.language_model import LanguageModel, load, load_config, load_tokenizer, save
from tdistill.models.outline import load_outline
from tiny import tiny_lm, tiny_model, tokenizer

IDS = torch.tensor([[3, 4, 5, 9]])
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers.:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with .tie_word_embeddings=True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def trained(model: Any, folder: Path, base: Path, **options: Any) -> Any:
    """An adapter of a model, saved as one of a base; returns the adapted network."""
    adapted: Any = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.5)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.eval()


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_an_adapter_of_one_of_two_tied_layers_leaves_the_other(layer: str, tmp_path: Path):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    save(tiny_lm(tie_word_embeddings=True), base)
    model = tiny_model(tie_word_embeddings=True)
    adapted = trained(model, folder, base, target_modules=["q_proj", layer])
    lm = load(folder, device="cpu")
    torch.testing.assert_close(logits(lm.model), logits(adapted), atol=1e-4, rtol=1e-4)
    save(lm, tmp_path / "whole")
    again = load(tmp_path / "whole", device="cpu")
    torch.testing.assert_close(logits(again.model), logits(adapted), atol=1e-4, rtol=1e-4)
    assert not again.model.config.tie_word_embeddings


@pytest.mark.parametrize("depth", [2, 4])
def test_a_base_of_another_depth_is_refused(depth: int, tmp_path: Path):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    save(tiny_lm(num_hidden_layers=depth), base)
    trained(tiny_model(), folder, base, target_modules=["q_proj"])
    with pytest.raises(ModelError, match="found one with other layers: 1 are in one of"):
        load(folder, device="cpu")


def test_a_merge_that_gives_other_logits_is_refused(tmp_path: Path, monkeypatch: Any):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    save(tiny_lm(tie_word_embeddings=True), base)
    model = tiny_model(tie_word_embeddings=True)
    trained(model, folder, base, target_modules=["lm_head"])
    monkeypatch.setattr("tdistill.models.adapters._untie", lambda model, names: None)
    with pytest.raises(ModelError, match="the merged model gives other logits than base and ad"):
        load(folder, device="cpu")


def test_an_adapter_of_an_adapter_is_loaded_through_both(tmp_path: Path):
    base, one, two = (tmp_path / name for name in ("base", "one", "two"))
    save(tiny_lm(), base)
    trained(tiny_model(), one, base, target_modules=["q_proj"])
    adapted = trained(load(one, device="cpu").model, two, one, target_modules=["v_proj"])
    assert adapter_bases(str(two)) == [str(one), str(base)]
    torch.testing.assert_close(
        logits(load(two, device="cpu").model), logits(adapted), atol=1e-4, rtol=1e-4
    )
    assert load_config(two).num_hidden_layers == 3
    assert load_tokenizer(two).get_vocab() == tokenizer().get_vocab()
    assert load_outline(two).end_ids == (1,)


def test_adapters_that_lead_to_themselves_are_refused(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, base in ((one, two), (two, one)):
        trained(tiny_model(), folder, base, target_modules=["q_proj"])
    own = json.loads((one / "adapter_config.json").read_text())
    for reading in (load, load_config, load_tokenizer, load_outline):
        with pytest.raises(ModelError, match="found 16 adapters, each the base of the one before"):
            reading(two)
    (one / "adapter_config.json").write_text(
        json.dumps(own | {"base_model_name_or_path": str(one)})
    )
    with pytest.raises(ModelError, match="expected the folder of a base, found its own"):
        load(one)


def test_a_model_of_another_kind_is_refused(tmp_path: Path):
    save(LanguageModel(tiny_model("gpt2"), tokenizer(), "gpt2"), tmp_path / "base")
    trained(tiny_model(), tmp_path / "adapter", tmp_path / "base", target_modules=["q_proj"])
    with pytest.raises(ModelError, match="expected an adapter that fits its base"):
        load(tmp_path / "adapter", device="cpu")
