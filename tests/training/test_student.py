"""Layer-dropped students: which layers, whose weights, and that the result is a normal model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from tdistill.errors import ModelError
from tdistill.models.decoding import Decoding
from tdistill.models.generation import decoding_sampler, generate
from tdistill.models.language_model import LanguageModel, model_fingerprint, save
from tdistill.training.student import drop_layers, evenly_spaced
from tiny import FAMILIES, tiny_lm

PROMPTS = [[3, 4, 5, 6], [9], [10, 11]]
STACKS = {"gpt2": "transformer.h", "opt": "model.decoder.layers"}


def layers(lm: LanguageModel, family: str) -> Any:
    return lm.model.get_submodule(STACKS.get(family, "model.layers"))


@given(st.integers(1, 200), st.data())
def test_kept_layers_are_evenly_spaced_with_first_and_last(depth: int, data: st.DataObject):
    keep = data.draw(st.integers(1, depth))
    kept = evenly_spaced(depth, keep)
    assert len(kept) == keep
    assert kept[0] == 0
    step = (depth - 1) / max(keep - 1, 1)
    assert all(abs(layer - i * step) <= 0.5 + 1e-9 for i, layer in enumerate(kept))
    if keep > 1:
        gaps = {b - a for a, b in pairwise(kept)}
        assert kept[-1] == depth - 1
        assert min(gaps) >= 1
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_the_kept_layers_of_the_teacher(family: str):
    teacher = tiny_lm(family, num_hidden_layers=5)
    before = model_fingerprint(teacher.model)
    keep = (0, 3, 4)
    student = drop_layers(teacher, keep)
    assert len(layers(student, family)) == 3
    assert student.model.config.num_hidden_layers == 3
    for new, old in zip(
        layers(student, family), (layers(teacher, family)[i] for i in keep), strict=True
    ):
        theirs = old.state_dict()
        for name, weight in new.state_dict().items():
            assert torch.equal(weight, theirs[name])
    inside = STACKS.get(family, "model.layers")
    shared = dict(teacher.model.named_parameters())
    for name, weight in student.model.named_parameters():
        if not name.startswith(inside):
            assert torch.equal(weight, shared[name])
    assert not student.model.training
    assert model_fingerprint(teacher.model) == before
    assert len(layers(teacher, family)) == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_kept_is_the_teacher(family: str):
    teacher = tiny_lm(family)
    ids = torch.tensor([[3, 4, 5, 9]])
    with torch.no_grad():
        student = drop_layers(teacher, (0, 1, 2)).model
        assert torch.equal(student(ids).logits, teacher.model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_runs_the_kept_layers_in_order(family: str):
    teacher = tiny_lm(family)
    student = drop_layers(teacher, (0, 2))
    if getattr(teacher.model.config, "layer_types", None):
        teacher.model.config.layer_types = [teacher.model.config.layer_types[i] for i in (0, 2)]
    ids = torch.tensor([[3, 4, 5, 9]])
    stack: Any = layers(teacher, family)
    parent: Any = teacher.model.get_submodule(STACKS.get(family, "model.layers").rpartition(".")[0])
    setattr(parent, "h" if family == "gpt2" else "layers", nn.ModuleList([stack[0], stack[2]]))
    teacher.model.config.num_hidden_layers = 2
    with torch.no_grad():
        expected = teacher.model(ids, use_cache=False).logits
        assert torch.equal(student.model(ids, use_cache=False).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_student_loads_anywhere_and_generates(family: str, tmp_path: Path):
    student = drop_layers(tiny_lm(family, num_hidden_layers=4), (0, 2, 3))
    save(student, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ours = generate(
        student, PROMPTS, decoding_sampler(Decoding(greedy=True), 3, seed=0), max_new_tokens=8
    )
    for prompt, response in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
        # A wrong layer index would mix the caches of two layers.
        for use_cache in (True, False):
            out = loaded.generate(
                ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **options
            )
            assert tuple(out[0, len(prompt) :].tolist()) == response.ids


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_layers_are_numbered_afresh(family: str):
    student = drop_layers(tiny_lm(family, num_hidden_layers=5), (0, 3, 4))
    found = [
        m.layer_idx for m in student.model.modules() if getattr(m, "layer_idx", None) is not None
    ]
    assert set(found) == {0, 1, 2}


def test_layer_lists_of_the_configuration_follow_the_layers():
    teacher = tiny_lm("gemma2", num_hidden_layers=4)
    student = drop_layers(teacher, (0, 2, 3))
    kinds = teacher.model.config.layer_types
    assert student.model.config.layer_types == [kinds[0], kinds[2], kinds[3]]
    assert len(teacher.model.config.layer_types) == 4
    # SmolLM3 leaves out rotary positions in every fourth layer: here layer 3, which becomes 1.
    student = drop_layers(tiny_lm("smollm3", num_hidden_layers=4), (0, 3))
    assert student.model.config.no_rope_layers == [1, 0]
    layer: Any = student.model.get_submodule("model.layers.1.self_attn")
    assert not layer.use_rope


def test_the_generation_config_is_kept_apart():
    teacher = tiny_lm()
    teacher.model.generation_config.eos_token_id = [1, 60]
    student = drop_layers(teacher, (0,))
    assert student.end_ids == (1, 60)
    assert student.model.generation_config is not teacher.model.generation_config
    assert student.tokenizer is teacher.tokenizer
    assert student.name == "tiny-llama with 1 layers"


def test_tied_embeddings_stay_tied():
    student = drop_layers(tiny_lm("gpt2"), (0, 2))
    model: Any = student.model
    assert model.lm_head.weight is model.transformer.wte.weight


def test_the_dtype_is_the_teachers():
    teacher = tiny_lm()
    teacher.model.to(torch.bfloat16)  # pyright: ignore
    student = drop_layers(teacher, (0, 2))
    assert {p.dtype for p in student.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("keep", [(), (0, 0), (2, 1), (-1, 0), (0, 3)])
def test_layers_that_do_not_exist_are_refused(keep: tuple[int, ...]):
    with pytest.raises(ModelError, match=r"expected ascending indices in \[0, 3\)"):
        drop_layers(tiny_lm(), keep)


def test_more_layers_than_there_are_are_refused():
    with pytest.raises(ModelError, match="expected from 1 to the teacher's 3, found 4"):
        evenly_spaced(3, 4)


def test_a_model_without_one_stack_is_refused():
    teacher = tiny_lm()
    teacher.model.second = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
    with pytest.raises(ModelError, match="expected one stack of 3 layers"):
        drop_layers(teacher, (0, 2))
