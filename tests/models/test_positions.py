"""Rows beyond a model's positions are refused before they are read, or said to be beyond."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from architectures import architecture, architecture_lm
from tdistill.errors import ModelError
from tdistill.models.decoding import Decoding
from tdistill.models.generation import decoding_sampler, generate
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import Pair
from tdistill.models.positions import PositionLimit, check_positions, check_rows, position_limit
from tiny import VOCABULARY, tiny_lm, tiny_model, tokenizer

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


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 5.0, 6.0, 8.0],
    "original_max_position_embeddings": 32,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("rope", "tokens"), [(LONGROPE, 32), (DYNAMIC, 32), ({"rope_type": "default"}, None)]
)
def test_scores_must_not_depend_on_the_length_that_is_read(
    rope: dict[str, Any], tokens: int | None
):
    rope = {"rope_theta": 10000.0} | rope
    lm = architecture_lm("llama", rope_parameters=rope, max_position_embeddings=32)
    ids = torch.randint(4, 60, (1, 80), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        short = lm.model(ids[:, :32], use_cache=False).logits[0]
        whole = lm.model(ids, use_cache=False).logits[0, :32]
    same = torch.allclose(whole, short, atol=1e-4)
    assert same == (tokens is None)  # what the limit is for
    limit = position_limit(lm.model)
    if tokens is None:
        assert limit == PositionLimit(32, hard=False)
    else:
        assert limit == PositionLimit(tokens, hard=True, changes=rope["rope_type"])
        with pytest.raises(ModelError, match=rf"at most {tokens} tokens, since beyond"):
            check_positions(lm, tokens + 1, "rollouts.max_new_tokens")


def test_rows_that_a_model_cannot_read_are_refused():
    lm = tiny_lm("gpt2")
    assert check_rows(lm, [], "x") is None
    assert check_rows(lm, [Pair((3,) * 100, (5,) * 29), Pair((3,), ())], "x") is None
    with pytest.raises(ModelError, match=r"^data\.max_response_tokens: .* found 129"):
        check_rows(lm, [Pair((3,) * 100, (5,) * 30)], "data.max_response_tokens")


def test_tokens_that_only_the_tokenizer_has_are_refused_by_name():
    larger = copy.deepcopy(tokenizer())
    larger.add_tokens(["<extra>"])
    lm = LanguageModel(tiny_model(), larger, "old-model")
    (prompt,) = larger(["a <extra>"])["input_ids"]
    expected = rf"^x: expected tokens that old-model can read, of ids below {VOCABULARY}; found "
    with pytest.raises(ModelError, match=rf"{expected}{VOCABULARY} \(<extra>\)"):
        check_rows(lm, [Pair(tuple(prompt), ())], "x")
