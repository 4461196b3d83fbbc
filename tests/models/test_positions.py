"""Rows beyond a model's positions are refused before they are read, or said to be beyond."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from architectures import architecture, architecture_lm
from tdistill.errors import ModelError
from tdistill.models.decoding import Decoding
from tdistill.models.generation import decoding_sampler, generate
from tdistill.models.positions import PositionLimit, check_positions, position_limit
from tiny import tiny_lm

HARD = ["gpt2", "opt", "gpt_neo", "gptj", "codegen", "gpt_bigcode", "biogpt", "mpt", "openai-gpt"]
SOFT = ["llama", "falcon", "gpt_neox", "phi", "gemma3_text", "mixtral", "xglm", "nanochat"]


def runs(model: Any, tokens: int) -> bool:
    try:
        with torch.no_grad():
            model(torch.full((1, tokens), 5), use_cache=False)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("model_type", HARD)
def test_a_hard_limit_is_where_the_network_fails(model_type: str):
    model = architecture(model_type, layers=1) if model_type != "gpt_neo" else None
    if model is None:
        changes = {"attention_types": [[["global"], 1]], "num_layers": 1}
        model = architecture(model_type, layers=1, **changes)
    limit = position_limit(model)
    assert limit == PositionLimit(128, hard=True)
    assert runs(model, limit.tokens)
    assert not runs(model, limit.tokens + 1)


def test_positions_that_padding_takes_do_not_count():
    model = architecture("roberta", is_decoder=True, layers=1)
    limit = position_limit(model)
    assert limit == PositionLimit(126, hard=True)
    assert runs(model, 126)
    assert not runs(model, 127)


@pytest.mark.parametrize("model_type", SOFT)
def test_a_soft_limit_is_passed(model_type: str):
    model = architecture(model_type, layers=1)
    assert position_limit(model) == PositionLimit(128, hard=False)
    assert runs(model, 131)


@pytest.mark.parametrize("model_type", ["bloom", "mamba"])
def test_what_counts_without_end_has_no_limit(model_type: str):
    assert position_limit(architecture(model_type, layers=1)) is None
    lm = architecture_lm(model_type, layers=1)
    assert check_positions(lm, 10**6, "rollouts.max_new_tokens") is None


def test_the_field_and_the_numbers_are_named():
    lm = tiny_lm("gpt2")
    assert check_positions(lm, 128, "x") is None
    with pytest.raises(
        ModelError, match=r"^rollouts\.max_new_tokens: expected rows of at most 128 .* found 129"
    ):
        check_positions(lm, 129, "rollouts.max_new_tokens")
    warning = check_positions(tiny_lm(), 129, "evaluation.max_new_tokens")
    assert warning is not None
    assert warning.startswith("evaluation.max_new_tokens: rows of up to 129 tokens, but tiny-llama")


def test_generation_is_refused_before_its_first_step():
    lm, prompt = tiny_lm("gpt2"), [5] * 120
    steps: list[int] = []
    greedy = decoding_sampler(Decoding(greedy=True), 2, seed=0)

    def sample(logits: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        steps.append(0)
        return greedy(logits, active)

    with pytest.raises(ModelError, match="found 129 with the longest prompt"):
        generate(lm, [[5], prompt], sample, max_new_tokens=10)
    assert steps == []
    lm.model.generation_config.eos_token_id = None  # pyright: ignore
    made = generate(lm, [[5], prompt], sample, max_new_tokens=9)
    assert len(made[1].ids) <= 9
