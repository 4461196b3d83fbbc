"""A network that was loaded is what its checkpoint holds: nothing random, left out or NaN."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tdistill.errors import ModelError
from tdistill.models.architecture import architecture_of
from tdistill.models.language_model import load, load_config, save
from tdistill.models.soundness import check_loaded, check_numbers
from tdistill.training.student import drop_layers
from tiny import VOCABULARY, tiny_lm, tiny_model

NAN, INF = float("nan"), float("inf")
Tensors = dict[str, Tensor]


def changed(folder: Path, change: Callable[[Tensors], None], family: str = "llama") -> Path:
    """A model whose file of weights is another."""
    save(tiny_lm(family), folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configured(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}: ")


def test_layers_beyond_those_of_the_config_are_refused(tmp_path: Path):
    save(tiny_lm(), tmp_path)
    configured(tmp_path, num_hidden_layers=1)
    assert refusal(tmp_path) == (
        "expected weights of the 1 layers that config.json says, found some of layer 1 "
        "(model.layers.1.input_layernorm.weight), which would be left out; correct the number of "
        "layers in config.json, or take the whole checkpoint"
    )


@pytest.mark.parametrize("family", ["gpt2", "opt", "falcon"])
def test_layers_are_counted_whatever_they_are_called(family: str, tmp_path: Path):
    save(tiny_lm(family), tmp_path)
    configured(tmp_path, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 2})
    assert "expected weights of the 2 layers that config.json says, found some of layer 2" in (
        refusal(tmp_path)
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.1.self_attn.q_proj.bias", (16,)),  # attention_bias is false
        ("model.layers.1.self_attn.q_norm.weight", (8,)),  # of Qwen3
        ("model.layers.0.mlp.gate.weight", (4, 16)),  # of a mixture
    ],
)
def test_a_weight_that_the_network_has_no_place_for_is_refused(
    name: str, shape: tuple[int, ...], tmp_path: Path
):
    folder = changed(tmp_path, lambda w: w.update({name: torch.ones(shape)}))
    found = f"found 1 in its layers that it has not (first: {name}), which would be left out"
    assert found in refusal(folder)


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),  # of older releases
        ("llama", "score.weight", (2, 16)),  # heads of other tasks
        ("llama", "v_head.summary.bias", (1,)),
        ("llama", "classifier.layers.0.weight", (2, 16)),
        ("llama", "vision_tower.encoder.layers.0.mlp.weight", (2, 2)),
        ("gpt2", "transformer.h.0.attn.bias", (1, 1, 8, 8)),  # masks
        ("gpt2", "transformer.h.0.attn.masked_bias", ()),
    ],
)
def test_what_a_network_does_not_need_is_left_alone(
    family: str, name: str, shape: tuple[int, ...], tmp_path: Path
):
    folder = changed(tmp_path, lambda w: w.update({name: torch.ones(shape)}), family)
    assert load(folder, device="cpu").num_parameters == tiny_lm(family).num_parameters


def test_layers_that_predict_several_tokens_are_left_alone():
    model = tiny_model()
    loading = {"missing_keys": [], "unexpected_keys": ["model.layers.3.eh_proj.weight"]}
    model.config.num_nextn_predict_layers = 1
    check_loaded(model, loading, "x")
    model.config.num_nextn_predict_layers = None
    with pytest.raises(ModelError, match="found some of layer 3"):
        check_loaded(model, loading, "x")


def test_a_weight_that_is_missing_is_named(tmp_path: Path):
    folder = changed(tmp_path, lambda w: w.pop("model.layers.2.mlp.up_proj.weight"))
    assert "found 1 missing (first: model.layers.2.mlp.up_proj.weight)" in refusal(folder)


def test_an_output_layer_of_its_own_is_one_whatever_the_config_says(tmp_path: Path):
    lm = tiny_lm()
    save(lm, tmp_path)
    configured(tmp_path, tie_word_embeddings=True)
    found = load(tmp_path, device="cpu")
    assert not found.model.config.tie_word_embeddings
    dropped: Any = drop_layers(found, (0, 2)).model
    torch.testing.assert_close(dropped.lm_head.weight, lm.model.get_output_embeddings().weight)
    changed(tmp_path, lambda w: w.pop("lm_head.weight"))
    configured(tmp_path, tie_word_embeddings=True)
    tied: Any = load(tmp_path, device="cpu").model
    assert tied.config.tie_word_embeddings
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_row_that_is_no_number_is_found_though_nothing_reads_it(value: float, tmp_path: Path):
    def spoil(weights: Tensors) -> None:
        weights["model.embed_tokens.weight"][61, 3] = value

    assert refusal(changed(tmp_path, spoil)) == (
        "expected weights that are numbers, found NaN or infinity in model.embed_tokens.weight in "
        f"row 61 of {VOCABULARY}, 1 of 1024 numbers; take a sound checkpoint"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_whose_sum_overflows_are_numbers(dtype: torch.dtype):
    model = tiny_model().to(dtype)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.finfo(dtype).max)
    check_numbers(model, "x")
    with torch.no_grad():
        model.model.norm.weight[5] = NAN
    with pytest.raises(ModelError, match=r"in model\.norm\.weight, 1 of 16 numbers"):
        check_numbers(model, "x")


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("generation_config.json", "[1]", "a JSON file of it has another form than"),
        ("tokenizer.json", "{}", "a JSON file of it has another form than"),
        ("tokenizer_config.json", "[]", "a JSON file of it has another form than"),
        ("config.json", '{"model_type": "llama", "quantization_config": 5}', "a JSON file of it"),
        ("config.json", '{"a": 1, "a": 2}', "found the key a twice in one object"),
        ("model.safetensors", "<html>", "a file of weights is cut, damaged or something else"),
    ],
)
def test_files_of_another_form_are_named_without_python(
    file: str, content: str, found: str, tmp_path: Path
):
    save(tiny_lm(), tmp_path)
    (tmp_path / file).write_text(content)
    assert found in refusal(tmp_path)


@pytest.mark.parametrize("named", [5, [], [7], None, {}])
def test_an_architecture_that_is_named_otherwise_is_no_matter(named: Any, tmp_path: Path):
    save(tiny_lm(), tmp_path)
    configured(tmp_path, architectures=named)
    assert isinstance(architecture_of(load_config(tmp_path)), str)
