"""Tiny random models of any architecture: its own configuration with small numbers in it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tdistill.models.language_model import LanguageModel
from tiny import VOCABULARY, spread, tokenizer

_WIDTHS: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "lru_width", "attention_hidden_size"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"), 1),
    **dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim", "word_embed_proj_dim"), 8),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("state_size", "mamba_d_state", "time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head"), 8),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "sliding_window", "head_dim"), 8),
    "num_key_value_heads": 1,
    "intermediate_size_mlp": 32,
    "vocab_size": VOCABULARY,
    "expand": 2,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_ssm": 32,
    "attention_window_size": 8,
}
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_ALL_HEADS = {"num_key_value_heads": 2}
_SPECIAL: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 4},
    "falcon_h1": {"lm_head_multiplier": 0.25},
    "mpt": {"logit_scale": 0.25},
    "cohere": {"logit_scale": 0.25},
    "gemma2": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 4.0},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "qwen3_next": {"full_attention_interval": 2},
    "smollm3": {"no_rope_layer_interval": 2},
    "gemma3_text": {"sliding_window_pattern": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "minicpm3"), {"head_dim": 4} | _ALL_HEADS),
    "codegen": {"n_embd": 64, "rotary_dim": 8, "n_head": 4},
    "gptj": {"n_embd": 32, "rotary_dim": 8, "n_head": 4},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "xglm": {"attention_heads": 2, "num_layers": 4},
}


def architecture(model_type: str, *, layers: int = 4, seed: int = 0, **changes: Any) -> Any:
    """A random network whose logits differ by nats.

    Args:
        model_type: as in ``config.json``.
        layers: how many.
        seed: of the weights.
        changes: of the configuration.
    """
    kind = CONFIG_MAPPING[model_type]
    renamed = getattr(kind, "attribute_map", {})
    known = set(vars(kind()))
    sizes = _WIDTHS | dict.fromkeys(_DEPTHS, layers)
    kept = {name: size for name, size in sizes.items() if name in known and name not in renamed}
    config = kind(**(kept | _SPECIAL.get(model_type, {}) | changes))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000, model_type
    return spread(model, 0.3)


def architecture_lm(model_type: str, **options: Any) -> LanguageModel:
    """The same with a tokenizer."""
    return LanguageModel(architecture(model_type, **options), tokenizer(), f"tiny-{model_type}")
