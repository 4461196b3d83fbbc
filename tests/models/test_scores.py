"""Scores read from hidden states equal the model's own logits, whatever the head."""

from __future__ import annotations

import warnings
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tdistill.errors import ModelError
from tdistill.evidence.rows import Row
from tdistill.models.finite import NonFiniteError
from tdistill.models.head import log_normaliser
from tdistill.models.layout import pack
from tdistill.models.score_forms import DenseStepScores, LinearStepScores, StepScores
from tdistill.models.scores import HeadMode, check_head, linear_head, step_scores
from tiny import FAMILIES, VOCABULARY, tiny_lm, tiny_model

HEADS = (*FAMILIES, "phi")  # phi has a bias in its output layer
ROWS = [
    Row((3, 4, 5), (9, 7, 1), True),
    Row((8,), (30, 31, 12, 2), False),
    Row((5,) * 6, (1,), True),
]
T = 8


# PEFT asks transformers for a property that transformers has renamed.
peft_asks = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def scored(
    model: Any, head: HeadMode = "auto", side: str = "right", rows: Any = ROWS
) -> StepScores:
    layout = pack(rows, pad_id=1, padding_side=side)
    return step_scores(model, layout, vocabulary_size=VOCABULARY, head=head)


def model_of(family: str, **changes: Any) -> Any:
    model = tiny_model(family, **changes)
    if family == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    return model


def own_logits(model: Any, rows: list[Row]) -> Tensor:
    """One unpadded forward pass a row, as anyone would call the model."""
    parts = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        first, count = len(row.prompt_ids) - 1, len(row.response_ids)
        parts.append(model(ids).logits[0, first : first + count, :VOCABULARY])
    return torch.cat(parts)


@pytest.mark.parametrize("family", HEADS)
@torch.no_grad()
def test_scores_are_the_models_own_logits(family: str):
    model = model_of(family)
    expected = own_logits(model, ROWS)
    scores = scored(model)
    assert isinstance(scores, LinearStepScores)
    assert len(scores) == T
    torch.testing.assert_close(scores.rows(0, T), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(scores.rows(2, 5), expected[2:5], atol=2e-5, rtol=1e-5)
    step = torch.arange(T).repeat_interleave(5)
    ids = torch.arange(5 * T) * 7 % VOCABULARY
    torch.testing.assert_close(scores.at(ids, step), expected[step, ids], atol=2e-5, rtol=1e-5)
    some = torch.tensor([5, 60, 2])
    torch.testing.assert_close(scores.columns(some), expected[:, some], atol=2e-5, rtol=1e-5)
    full = scored(model, "full")
    torch.testing.assert_close(full.columns(some), expected[:, some], atol=2e-5, rtol=1e-5)
    assert (scores.vocabulary_size, full.vocabulary_size) == (VOCABULARY, VOCABULARY)
    normaliser, chosen = expected.logsumexp(-1), torch.tensor([6, 1])
    for form in (scores, full):
        reduced = form.reduce(lambda z: z.logsumexp(-1), chunk_size=3)
        torch.testing.assert_close(reduced, normaliser, atol=2e-5, rtol=1e-5)
        closed = form.log_normaliser(chunk_size=3)
        torch.testing.assert_close(closed, normaliser, atol=2e-5, rtol=1e-5)
        part = form.select(chosen)
        assert len(part) == 2
        torch.testing.assert_close(part.rows(0, 2), expected[chosen], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", HEADS)
def test_the_linear_form_equals_the_full_one_in_value_and_gradient(family: str):
    found: dict[str, list[Tensor]] = {}
    step = torch.arange(T).repeat_interleave(3)
    ids = torch.arange(3 * T) * 11 % VOCABULARY
    for head in ("linear", "full"):
        model = model_of(family)
        scores = scored(model, head)
        assert isinstance(scores, LinearStepScores if head == "linear" else DenseStepScores)
        assert len(scores) == T
        weight = torch.linspace(0.0, 1.0, T)
        normaliser = scores.reduce(lambda z, w: w * z.logsumexp(-1), weight, chunk_size=3)
        value = (scores.at(ids, step).sin() + normaliser[step]).sum()
        value.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found[head] = [value, scores.rows(0, T), *gradients]
    assert len(found["full"]) == len(found["linear"]) > 10
    for a, b in zip(found["linear"], found["full"], strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_a_tied_layer_are_read_from_the_parameter_itself(tied: bool):
    model = tiny_model(tie_word_embeddings=tied)
    head = linear_head(model, VOCABULARY - 3)
    assert head is not None
    assert (head.weight is model.lm_head.weight) == tied
    assert head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    scores = scored(model)
    scores.at(torch.tensor([9]), torch.tensor([2])).sum().backward()
    gradient = model.lm_head.weight.grad
    assert not gradient.is_sparse
    assert (gradient.any(1).sum() > 1) == tied  # one row, but for those of the input tokens
    with torch.no_grad():
        still = linear_head(model, VOCABULARY)
    assert still is not None
    assert not still.weight.requires_grad


@pytest.mark.parametrize("head", ["linear", "full"])
@pytest.mark.parametrize("family", HEADS)
@torch.no_grad()
def test_the_padding_side_and_the_padding_change_nothing(family: str, head: HeadMode):
    model = model_of(family)
    right = scored(model, head, "right").rows(0, T)
    left = scored(model, head, "left").rows(0, T)
    torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-5)
    alone = torch.cat([scored(model, head, rows=[row]).rows(0, 9) for row in ROWS])
    torch.testing.assert_close(alone, right, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["linear", "full"])
@torch.no_grad()
def test_padding_of_the_matrix_does_not_count(head: HeadMode):
    """A model with 72 rows whose first 64 are those of one with 64 is the same model."""
    small, large = tiny_lm().model, tiny_lm(vocab_size=VOCABULARY + 8).model
    weights = large.state_dict()
    for name, weight in small.state_dict().items():
        weights[name][: len(weight)] = weight
    large.load_state_dict(weights)
    padded, exact = scored(large, head), scored(small, head)
    torch.testing.assert_close(padded.rows(0, T), exact.rows(0, T), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        padded.reduce(lambda z: z.logsumexp(-1), chunk_size=4),
        exact.reduce(lambda z: z.logsumexp(-1), chunk_size=4),
        atol=1e-6,
        rtol=1e-6,
    )
    head_of = linear_head(large, VOCABULARY)
    assert head_of is not None
    assert (head_of.size, len(head_of.weight)) == (VOCABULARY, VOCABULARY + 8)
    assert log_normaliser(head_of, torch.zeros(1, 16)).item() == pytest.approx(4.158883, abs=1e-5)


def test_no_tensor_over_steps_and_vocabulary_exists_on_the_linear_path():
    from torch.utils._python_dispatch import TorchDispatchMode

    shapes = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.layout == torch.strided:
                shapes.add(tuple(out.shape))
            return out

    def wide(head: HeadMode) -> list[tuple[int, ...]]:
        model = model_of("llama")
        scored(model, head)  # what the network allows is tried before
        shapes.clear()
        with Watch():
            scores = scored(model, head)
            chosen = scores.at(torch.tensor([3, 4]), torch.tensor([0, 7])).sum()
            (chosen + scores.reduce(lambda z: z.logsumexp(-1), chunk_size=2).sum()).backward()
        # Sequences are 6 or 7 wide, steps 8: the embedding itself is [V, D].
        return [s for s in shapes if VOCABULARY in s and s[0] not in (1, 2, 16, VOCABULARY)]

    assert wide("linear") == []
    assert wide("full") != []


@pytest.mark.parametrize("family", HEADS)
def test_every_linear_head_passes_the_check_silently(family: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_head(model_of(family), vocabulary_size=VOCABULARY)


def adds_to_one_logit(model: Any, size: float) -> Any:
    original = model.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        out.logits[..., 17] += size
        return out

    model.forward = MethodType(forward, model)
    return model


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_a_tampered_head_is_read_through_full_logits(family: str):
    tampered = adds_to_one_logit(model_of(family), 0.5)
    with pytest.warns(UserWarning, match=r"differ from .* own logits \(by 0\.5 nats"):
        check_head(tampered, vocabulary_size=VOCABULARY)
    with torch.no_grad():
        torch.testing.assert_close(scored(tampered).rows(0, T), own_logits(tampered, ROWS))
    with pytest.raises(ModelError, match="to auto or full"):
        check_head(tampered, vocabulary_size=VOCABULARY, head="linear")
    harmless = adds_to_one_logit(model_of(family), 1e-6)
    check_head(harmless, vocabulary_size=VOCABULARY, head="linear")


def test_a_logit_that_is_not_a_number_is_refused():
    with pytest.raises(NonFiniteError, match="expected finite logits"):
        check_head(adds_to_one_logit(model_of("llama"), float("nan")), vocabulary_size=VOCABULARY)


@pytest.mark.parametrize("logits", [1e-3, 1.0, 30.0])
def test_a_scale_outside_the_output_layer_is_seen_at_any_size_of_logits(logits: float):
    model = tiny_model()
    with torch.no_grad():
        largest = float(own_logits(model, ROWS).abs().max())
        model.lm_head.weight.mul_(logits / largest)
    model.forward = MethodType(_scaled_by(model.forward, 0.9), model)
    with pytest.warns(UserWarning, match="scores come from full logits"):
        check_head(model, vocabulary_size=VOCABULARY)
    with torch.no_grad():
        torch.testing.assert_close(scored(model).rows(0, T), own_logits(model, ROWS))


def _scaled_by(original: Any, factor: float) -> Any:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        out.logits = out.logits * factor
        return out

    return forward


def test_the_check_leaves_the_training_mode_as_it_was():
    model = tiny_model()
    for training in (True, False):
        model.train(training)
        check_head(model, vocabulary_size=VOCABULARY)
        assert model.training is training


class Squashed(nn.Module):
    """An output layer that is not a linear map."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    @property
    def weight(self) -> Tensor:
        return self.inner.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden).tanh()


def squashed_model() -> Any:
    model = tiny_model()
    model.lm_head = Squashed(model.lm_head)
    return model


def test_a_head_that_is_not_linear_falls_back_with_a_notice():
    model = squashed_model()
    with pytest.warns(UserWarning, match="the output layer is Squashed, not a plain linear map"):
        check_head(model, vocabulary_size=VOCABULARY)
    assert linear_head(model, VOCABULARY) is None
    with torch.no_grad():
        scores = scored(model)
        assert isinstance(scores, DenseStepScores)
        torch.testing.assert_close(scores.rows(0, T), own_logits(model, ROWS), atol=1e-5, rtol=1e-5)
    assert scores.rows(0, T).abs().max() <= 1.0


def test_a_head_that_is_not_linear_cannot_be_read_as_one():
    with (
        pytest.warns(UserWarning, match="Squashed"),
        pytest.raises(ModelError, match="found Squashed that does not; set training"),
    ):
        check_head(squashed_model(), vocabulary_size=VOCABULARY, head="linear")
    with (
        pytest.warns(UserWarning, match="Squashed"),
        pytest.raises(ModelError, match="expected an output layer whose linear map"),
    ):
        scored(squashed_model(), "linear")


def test_half_precision_gives_float32_scores():
    model = tiny_model().to(torch.bfloat16)
    for head in ("linear", "full"):
        scores = scored(model, head)
        assert scores.rows(0, 2).dtype == torch.float32
        assert scores.at(torch.tensor([3]), torch.tensor([0])).dtype == torch.float32


@peft_asks
def test_adapters_are_read_through():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
        plain = scored(tiny_model()).rows(0, T)
        adapted = scored(model)
        assert isinstance(adapted, LinearStepScores)
        torch.testing.assert_close(
            adapted.rows(0, T), own_logits(model, ROWS), atol=2e-5, rtol=1e-5
        )
    assert not torch.allclose(adapted.rows(0, T), plain)
