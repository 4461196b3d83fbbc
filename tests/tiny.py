"""Tiny random models of every family of the test matrix, and a tokenizer they share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tdistill.models.language_model import LanguageModel

VOCABULARY = 64
FAMILIES = ("gpt2", "opt", "llama", "qwen2", "qwen3", "gemma", "gemma2", "cohere", "granite")
_AT_ONCE = ("gpt2", "llama", "gemma2", "cohere", "falcon")  # one of each kind of layer and layout


def by_family(families: Sequence[str]) -> list[Any]:
    """Parameters of a test that costs seconds a family: the other families are slow cases."""
    return [
        pytest.param(family, marks=[pytest.mark.slow] * (family not in _AT_ONCE))
        for family in families
    ]


_COMMON = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 128},
    "opt": {
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 8,
        "max_position_embeddings": 128,
        "do_layer_norm_before": True,
    },
    "gemma2": {**_COMMON, "final_logit_softcapping": 2.0, "sliding_window": 64},
    "cohere": {**_COMMON, "logit_scale": 0.25},
    "granite": {**_COMMON, "logits_scaling": 4.0},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level over letters and a few words; pad id = end id, as GPT-2 has it."""
    words = ["<unk>", "<end>", *"abcdefghijklmnopqrstuvwxyz", "?", ".", "yes", "no", "the"]
    words += [f"w{i}" for i in range(VOCABULARY - 4 - len(words))]
    words += ["<|user|>", "<|assistant|>", "one", "two"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )


def spread(model: Any, deviation: float) -> Any:
    """The network with matrices so large that its logits differ by nats, in evaluation mode."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, deviation)
    return model.eval()


def tiny_model(family: str = "llama", *, seed: int = 0, scale: float = 1.0, **changes: Any) -> Any:
    """A random network of a family; ``scale`` widens its logits, ``changes`` its configuration."""
    settings = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    settings |= _SPECIAL.get(family, _COMMON) | changes
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.25 * scale if "embed" in name or "wte" in name else 0.15)
    return model.eval()


def tiny_lm(family: str = "llama", **options: Any) -> LanguageModel:
    """A tiny network with the tokenizer."""
    return LanguageModel(tiny_model(family, **options), tokenizer(), f"tiny-{family}")
