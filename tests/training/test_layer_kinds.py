"""Students keep the kinds of their layers, in architectures where those follow from an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import architecture_lm
from tdistill.errors import ModelError
from tdistill.models.language_model import LanguageModel, load, save
from tdistill.training.bypass import layer_stack
from tdistill.training.layer_choice import choose_layers
from tdistill.training.student import drop_layers, nearest_fit

IDS = torch.tensor([[3, 4, 5, 9, 12, 7, 30, 22, 11, 13, 14, 40]])

# How the kind of a layer follows from its index, layers to keep, and how the student's says it.
FREE: list[tuple[str, dict[str, Any], tuple[int, ...], dict[str, Any]]] = [
    ("deepseek_v3", {"first_k_dense_replace": 3}, (0, 2, 5), {"first_k_dense_replace": 2}),
    ("minicpm3", {"scale_depth": 1.4}, (1, 4), {}),  # shares of layers follow from their number
    (
        "llama4_text",
        {"interleave_moe_layer_step": 2, "no_rope_layer_interval": 3},
        (1, 2, 4),
        {"moe_layers": [0], "no_rope_layers": [1, 0, 1]},
    ),
    ("glm4_moe", {"first_k_dense_replace": 2}, (0, 2, 5), {"first_k_dense_replace": 1}),
    ("glm4_moe", {"first_k_dense_replace": 2}, (3, 5), {"first_k_dense_replace": 0}),
    (
        "qwen3_moe",
        {"decoder_sparse_step": 2},
        (0, 1, 2, 5),
        {"decoder_sparse_step": 1, "mlp_only_layers": [0, 2]},
    ),
    (
        "qwen3_moe",
        {"decoder_sparse_step": 1, "mlp_only_layers": [0, 3]},
        (1, 3, 4),
        {"mlp_only_layers": [1]},
    ),
    (
        "gemma3_text",
        {"sliding_window_pattern": 3, "sliding_window": 3},
        (1, 2, 5),
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    (
        "smollm3",
        {"no_rope_layer_interval": 3},
        (0, 2, 5),
        {"no_rope_layers": [1, 0, 0]},
    ),
    (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention", "mamba", "mamba", "attention", "mamba"]},
        (0, 4, 5),
        {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    ),
    ("bamba", {"attn_layer_indices": [1, 4]}, (0, 3, 4), {"attn_layer_indices": [2]}),
    ("jamba", {"attn_layer_period": 3, "attn_layer_offset": 1}, (2, 3, 4, 5), {}),
    ("gpt_neo", {"attention_types": [[["global", "local"], 3]], "num_layers": 6}, (1, 2), {}),
    ("recurrent_gemma", {}, (1, 2, 4), {}),
    ("minimax", {}, (0, 1, 3), {}),  # whose decay follows from index and number of layers
    ("mixtral", {"num_local_experts": 6}, (0, 5), {}),  # as many experts as layers
]


def composed(lm: LanguageModel, keep: tuple[int, ...]) -> Tensor:
    """The teacher's logits where every other layer hands on what it read."""
    hooks = []
    for number, layer in enumerate(layer_stack(lm.model)[1]):
        if number in keep:
            continue

        def hand_on(module: Any, given: Any, named: Any, made: Any) -> Any:
            read = given[0] if given else named["hidden_states"]
            return (read, *made[1:]) if isinstance(made, tuple) else read

        hooks.append(layer.register_forward_hook(hand_on, with_kwargs=True))
    try:
        return logits(lm.model)
    finally:
        for hook in hooks:
            hook.remove()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize(("model_type", "changes", "keep", "written"), FREE)
def test_every_layer_stays_what_it_was(
    model_type: str,
    changes: dict[str, Any],
    keep: tuple[int, ...],
    written: dict[str, Any],
    tmp_path: Path,
):
    teacher = architecture_lm(model_type, layers=6, **changes)
    expected, whole = composed(teacher, keep), logits(teacher.model)
    assert not torch.allclose(expected, whole, atol=1e-2)
    student = drop_layers(teacher, keep)
    torch.testing.assert_close(logits(student.model), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(teacher.model), whole), "the teacher is as it was"
    config = student.model.config
    assert {name: getattr(config, name) for name in written} == written
    save(student, tmp_path)
    again = load(tmp_path, device="cpu")
    again.model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(again.model), expected, atol=1e-4, rtol=1e-4)


def test_what_no_period_can_say_is_refused_with_layers_that_work():
    teacher = architecture_lm("jamba", layers=8, attn_layer_period=4, attn_layer_offset=2)
    with pytest.raises(ModelError, match=r"layers 2, 3, 5, 6, 7 .* kind, .*; layers [\d, ]+ can$"):
        drop_layers(teacher, (2, 3, 5, 6, 7))
    other = nearest_fit(teacher, (2, 3, 5, 6, 7))
    assert len(other) == 5
    student = drop_layers(teacher, other)
    torch.testing.assert_close(
        logits(student.model), composed(teacher, other), atol=1e-4, rtol=1e-4
    )


def test_a_rule_takes_the_nearest_layers_that_can_be_kept():
    """ModernBERT's first layer has no norm: there is one such layer, and it comes first."""
    teacher = architecture_lm("modernbert-decoder", layers=6)
    assert nearest_fit(teacher, (0, 3)) == (0, 3)
    assert nearest_fit(teacher, (1, 3)) == (0, 3)
    choice = choose_layers(teacher, 3, "even")
    assert (choice.kept, choice.wanted) == ((0, 2, 5), ())


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("diffllama", {"num_key_value_heads": 2, "num_attention_heads": 4}),
    ],
)
def test_where_numbers_follow_from_the_index_the_first_layers_are_kept(
    model_type: str, changes: dict[str, Any]
):
    teacher = architecture_lm(model_type, **changes)
    with pytest.raises(ModelError, match=r"layers 0, 1 can$"):
        drop_layers(teacher, (0, 3))
    assert choose_layers(teacher, 2, "first").kept == (0, 1)
    choice = choose_layers(teacher, 2, "even")
    assert (choice.kept, choice.wanted) == ((0, 1), (0, 3))
    assert "not 0, 3, whose kinds follow from their index" in choice.text()
    student = drop_layers(teacher, choice.kept)
    torch.testing.assert_close(logits(student.model), composed(teacher, (0, 1)))


def test_an_index_that_acts_unseen_is_found_by_what_the_layers_give():
    """RWKV has divided the weights of its later blocks once it has run, as no module shows."""
    teacher = architecture_lm("rwkv", layers=8, rescale_every=6)
    logits(teacher.model)
    with pytest.raises(ModelError, match=r"found logits that differ .*choose: first"):
        drop_layers(teacher, (0, 1, 3, 4, 5, 6, 7))
