"""Every architecture is scored and sampled as its own forward pass over whole rows says."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import architecture, architecture_lm
from tdistill.errors import ModelError
from tdistill.models.layout import Pair, lay_out, pack
from tdistill.models.readers import open_reader
from tdistill.models.scores import linear_head, step_scores
from tiny import VOCABULARY

# Model type, scale and cap of its logits, and the reader that is right for it.
EVERY = [
    ("falcon_h1", (0.25, None), "LibraryReader"),
    ("mpt", (1.0, None), "InPlaceReader"),  # has a logit_scale, which transformers ignores
    ("recurrent_gemma", (1.0, 30.0), "RereadingReader"),  # another name for a cap
    ("mamba", (1.0, None), "LibraryReader"),
    ("falcon_mamba", (1.0, None), "LibraryReader"),
    ("modernbert-decoder", None, "InPlaceReader"),  # its head is not linear
    ("llama4_text", (1.0, None), "GroupedReader"),
    ("deepseek_v4", (1.0, None), "GroupedReader"),
    ("openai-gpt", (1.0, None), "RereadingReader"),  # keeps nothing of the past
]
SLOW = [
    ("afmoe", (1.0, None), "InPlaceReader"),
    ("apertus", (1.0, None), "InPlaceReader"),
    ("bamba", (1.0, None), "LibraryReader"),
    ("bart", (1.0, None), "GroupedReader"),
    ("biogpt", (1.0, None), "InPlaceReader"),
    ("bitnet", (1.0, None), "InPlaceReader"),
    ("bloom", (1.0, None), "InPlaceReader"),
    ("codegen", (1.0, None), "InPlaceReader"),
    ("cohere", (0.25, None), "InPlaceReader"),
    ("cohere2", (0.0625, None), "InPlaceReader"),
    ("cwm", (1.0, None), "InPlaceReader"),
    ("deepseek_v2", (1.0, None), "InPlaceReader"),
    ("deepseek_v3", (1.0, None), "InPlaceReader"),
    ("minicpm3", (16.0, None), "InPlaceReader"),
    ("doge", (1.0, None), "GroupedReader"),
    ("ernie4_5", (1.0, None), "InPlaceReader"),
    ("ernie4_5_moe", (1.0, None), "InPlaceReader"),
    ("exaone4", (1.0, None), "InPlaceReader"),
    ("falcon", (1.0, None), "InPlaceReader"),
    ("flex_olmo", (1.0, None), "InPlaceReader"),
    ("gemma", (1.0, None), "InPlaceReader"),
    ("gemma2", (1.0, 2.0), "InPlaceReader"),
    ("gemma3_text", (1.0, None), "InPlaceReader"),
    ("glm", (1.0, None), "InPlaceReader"),
    ("glm4", (1.0, None), "InPlaceReader"),
    ("glm4_moe", (1.0, None), "InPlaceReader"),
    ("gpt2", (1.0, None), "InPlaceReader"),
    ("gpt_bigcode", (1.0, None), "InPlaceReader"),
    ("gpt_neo", (1.0, None), "InPlaceReader"),
    ("gpt_neox", (1.0, None), "InPlaceReader"),
    ("gpt_oss", (1.0, None), "InPlaceReader"),
    ("gptj", (1.0, None), "InPlaceReader"),
    ("granite", (0.25, None), "InPlaceReader"),
    ("granitemoe", (1.0, None), "InPlaceReader"),
    ("granitemoehybrid", (1.0, None), "LibraryReader"),
    ("helium", (1.0, None), "InPlaceReader"),
    ("jamba", (1.0, None), "LibraryReader"),
    ("jetmoe", (1.0, None), "InPlaceReader"),
    ("lfm2", (1.0, None), "LibraryReader"),
    ("mamba2", (1.0, None), "LibraryReader"),
    ("minimax", (1.0, None), "GroupedReader"),
    ("mistral", (1.0, None), "InPlaceReader"),
    ("mixtral", (1.0, None), "InPlaceReader"),
    ("nemotron", (1.0, None), "InPlaceReader"),
    ("olmo", (1.0, None), "InPlaceReader"),
    ("olmo2", (1.0, None), "InPlaceReader"),
    ("olmo3", (1.0, None), "InPlaceReader"),
    ("olmoe", (1.0, None), "InPlaceReader"),
    ("opt", (1.0, None), "InPlaceReader"),
    ("persimmon", (1.0, None), "InPlaceReader"),
    ("phi", (1.0, None), "InPlaceReader"),
    ("phi3", (1.0, None), "InPlaceReader"),
    ("phimoe", (1.0, None), "InPlaceReader"),
    ("qwen2", (1.0, None), "InPlaceReader"),
    ("qwen2_moe", (1.0, None), "InPlaceReader"),
    ("qwen3", (1.0, None), "InPlaceReader"),
    ("qwen3_moe", (1.0, None), "InPlaceReader"),
    ("qwen3_next", (1.0, None), "LibraryReader"),
    ("rwkv", (1.0, None), "RereadingReader"),
    ("seed_oss", (1.0, None), "InPlaceReader"),
    ("smollm3", (1.0, None), "InPlaceReader"),
    ("stablelm", (1.0, None), "InPlaceReader"),
    ("starcoder2", (1.0, None), "InPlaceReader"),
    ("vaultgemma", (1.0, 30.0), "InPlaceReader"),
    ("xglm", (1.0, None), "InPlaceReader"),
    ("xlstm", (1.0, 30.0), "RereadingReader"),
]
CASES = [*EVERY, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
PROMPTS = [(5, 9, 13, 17, 21), (7, 11), (30, 2, 44)]
RESPONSES = [(6, 8, 40, 3), (10, 12, 15, 50), (14, 16, 33, 20)]


def whole(model: Any, ids: tuple[int, ...]) -> Tensor:
    """Log-probabilities of one unpadded row, as anyone would compute them."""
    return model(torch.tensor([ids]), use_cache=False).logits[0, :, :VOCABULARY].log_softmax(-1)


@pytest.mark.parametrize(("model_type", "form", "reader"), CASES)
@torch.no_grad()
def test_scores_and_samples_are_those_of_whole_rows(
    model_type: str, form: tuple[float, float | None] | None, reader: str
):
    lm = architecture_lm(model_type)
    own = [whole(lm.model, p + r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    pairs = [Pair(p, (*r, 1)) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    read = torch.cat([log_probs[len(p) - 1 :] for p, log_probs in zip(PROMPTS, own, strict=True)])
    one_prompt = [Pair(PROMPTS[0], (*r, 1)) for r in RESPONSES]
    shared = torch.cat([whole(lm.model, PROMPTS[0] + r)[4:] for r in RESPONSES])
    with warnings.catch_warnings(action="ignore"):  # what is slow says so
        laid = [(pack(pairs, pad_id=1, padding_side=side), read) for side in ("right", "left")]
        for layout, expected in [*laid, (lay_out(one_prompt, 1), shared)]:
            for head in ("auto", "full"):
                scores = step_scores(lm.model, layout, vocabulary_size=VOCABULARY, head=head)
                found = scores.rows(0, len(scores)).log_softmax(-1)
                torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
        opened = open_reader(lm, 3)
        linear = linear_head(lm.model, VOCABULARY)
    assert type(opened).__name__ == reader
    assert (None if linear is None else (linear.scale, linear.softcap)) == form
    for step in range(5):
        tokens = torch.tensor([r[step - 1] for r in RESPONSES])
        logits = opened.begin(PROMPTS) if step == 0 else opened.read(tokens)
        at = [log_probs[len(p) - 1 + step] for p, log_probs in zip(PROMPTS, own, strict=True)]
        torch.testing.assert_close(logits.log_softmax(-1), torch.stack(at), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("model_type", "reader"),
    [("llama", "InPlaceReader"), ("qwen3_moe", "InPlaceReader"), ("mamba", "LibraryReader")],
)
def test_rounding_of_lower_precisions_is_no_disagreement(
    model_type: str, reader: str, dtype: torch.dtype
):
    lm = architecture_lm(model_type, layers=8)
    lm.model.to(dtype)  # pyright: ignore
    with warnings.catch_warnings(action="error"):
        assert type(open_reader(lm, 2)).__name__ == reader
        head = linear_head(lm.model, VOCABULARY)
    assert head is not None
    assert (head.scale, head.softcap) == (1.0, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wrong_scale_is_seen_in_lower_precisions(dtype: torch.dtype):
    model = architecture("llama")
    model.to(dtype)
    model.lm_head.register_forward_hook(lambda module, given, made: made * 0.93)
    with pytest.warns(UserWarning, match="scores come from full logits"):
        assert linear_head(model, VOCABULARY) is None


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlnet", "prophetnet"])
def test_networks_that_see_later_tokens_are_refused_by_name(model_type: str):
    lm = architecture_lm(model_type)
    for use in (
        lambda: open_reader(lm, 2),
        lambda: step_scores(lm.model, pack([Pair((2,), (3,))], pad_id=1), vocabulary_size=9),
    ):
        with pytest.raises(ModelError, match=r"^\w+: expected a causal language model, .* nats"):
            use()


@torch.no_grad()
def test_positions_that_a_network_counts_its_own_way_are_left_to_it():
    """RoBERTa as a decoder counts from its padding token's id."""
    model = architecture("roberta", is_decoder=True, max_position_embeddings=64)
    pairs = [Pair(p, (*r, 1)) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    expected = torch.cat(
        [whole(model, p + r)[len(p) - 1 :] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    )
    for side in ("right", "left"):
        layout = pack(pairs, pad_id=1, padding_side=side)
        with warnings.catch_warnings(action="ignore"):  # its head is not linear
            scores = step_scores(model, layout, vocabulary_size=VOCABULARY)
        found = scores.rows(0, len(scores)).log_softmax(-1)
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_attention_may_be_given_its_mask_by_name():
    """As AFMoE does, after any other network was read by parts."""
    model = architecture("afmoe")
    model.set_attn_implementation("sdpa")
    pairs = [Pair(p, (*r, 1)) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    scores = step_scores(model, pack(pairs, pad_id=1), vocabulary_size=VOCABULARY)
    found = scores.rows(0, len(scores)).log_softmax(-1)
    rows = zip(PROMPTS, RESPONSES, strict=True)
    expected = torch.cat([whole(model, p + r)[len(p) - 1 :] for p, r in rows])
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
