from __future__ import annotations

from typing import Any

import pytest
import torch
from heads import HEADS, STEPS, WIDTH, Allocations, assert_same, make_head
from torch import Tensor

from tdistill.models.head import LinearHead, log_normaliser, map_logits


@pytest.fixture
def hidden(generator: torch.Generator) -> Tensor:
    return torch.randn(STEPS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("chunk_size", [1, 4, 11, 100])
def test_the_normaliser_is_the_full_log_sum_exp_for_every_chunk(
    options: dict[str, Any], chunk_size: int, hidden: Tensor
):
    head = make_head(options)
    found = log_normaliser(head, hidden, chunk_size=chunk_size)
    assert_same(found, head.logits(hidden).logsumexp(-1), head, hidden)


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("chunk_size", [3, 11])
def test_any_function_of_the_logits_and_of_constants(
    options: dict[str, Any], chunk_size: int, hidden: Tensor
):
    head, factor = make_head(options), torch.linspace(0.0, 1.0, STEPS, dtype=torch.float64)

    def function(logits: Tensor, factor: Tensor) -> Tensor:
        return torch.stack([logits.amax(-1), factor * logits.sin().sum(-1)], dim=-1)

    found = map_logits(head, hidden, function, factor, chunk_size=chunk_size)
    assert_same(found, function(head.logits(hidden), factor), head, hidden)


def test_gradcheck(hidden: Tensor):
    weight = make_head({}).weight
    bias = torch.linspace(-1, 1, len(weight), dtype=torch.float64).requires_grad_()

    def normaliser(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return log_normaliser(LinearHead(w, b, scale=0.5, softcap=2.0), h, chunk_size=4)

    assert torch.autograd.gradcheck(normaliser, (hidden, weight, bias), fast_mode=True)


def test_a_gradient_that_would_be_lost_is_refused(hidden: Tensor):
    head, factor = make_head({}), torch.ones(STEPS, dtype=torch.float64, requires_grad=True)
    message = "expected a function of the logits and of constants"
    with pytest.raises(ValueError, match=message):
        map_logits(head, hidden, lambda z, f: f * z.sum(-1), factor)
    with pytest.raises(ValueError, match=message):
        map_logits(head, hidden, lambda z: factor[0] * z.sum(-1))
    with torch.no_grad():  # nothing is lost
        plain = map_logits(head, hidden, lambda z, f: factor[0] * f * z.sum(-1), factor)
    torch.testing.assert_close(plain, head.logits(hidden).sum(-1))


@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
def test_frozen_parts_get_no_gradient(needed: tuple[bool, bool], hidden: Tensor):
    weight = make_head({}).weight.data.requires_grad_(needed[0])
    hidden = hidden.data.requires_grad_(needed[1])
    found = log_normaliser(LinearHead(weight), hidden, chunk_size=4)
    assert found.requires_grad == any(needed)
    if any(needed):
        found.sum().backward()
    assert (weight.grad is not None, hidden.grad is not None) == needed


def test_memory_is_one_chunk_of_logits_and_one_gradient_of_the_weight():
    steps, width, vocabulary, chunk = 64, 4, 500, 2
    head = LinearHead(torch.randn(vocabulary, width).requires_grad_())
    hidden = torch.randn(steps, width).requires_grad_()
    with Allocations() as made:
        log_normaliser(head, hidden, chunk_size=chunk).sum().backward()
    assert [size for size in made.sizes if size > chunk * vocabulary] == [vocabulary * width]
    with Allocations() as made:
        head.logits(hidden)
    assert made.largest == steps * vocabulary


def test_without_gradients_nothing_is_kept(hidden: Tensor):
    head = make_head({})
    expected = log_normaliser(head, hidden)
    with torch.no_grad():
        found = log_normaliser(head, hidden, chunk_size=3)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)


def test_no_steps():
    head = make_head({})
    hidden = torch.zeros(0, WIDTH, dtype=torch.float64, requires_grad=True)
    found = log_normaliser(head, hidden)
    assert found.shape == (0,)
    found.sum().backward()
    assert head.weight.grad is not None and not head.weight.grad.any()


def relative_error(found: Tensor, truth: Tensor) -> float:
    return float(((found.double() - truth).norm() / truth.norm()).detach())


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_as_close_to_the_truth_as_autograd_is(
    autocast: bool, generator: torch.Generator
):
    weight, hidden = torch.randn(300, 64, generator=generator), torch.randn(40, 64)
    hidden, weight = (0.3 * hidden).bfloat16(), weight.bfloat16()
    truth = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    exact = LinearHead(truth[1]).logits(truth[0]).logsumexp(-1)
    exact.sum().backward()
    errors = {}
    for name in ("chunked", "plain"):
        kept = torch.float32 if autocast else torch.bfloat16
        h, w = (t.to(kept).requires_grad_() for t in (hidden, weight))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            if name == "chunked":
                found = log_normaliser(LinearHead(w), h, chunk_size=8)
            else:
                found = LinearHead(w).logits(h).logsumexp(-1)
        found.sum().backward()
        assert found.dtype == torch.float32
        pairs = zip((found, h.grad, w.grad), (exact, truth[0].grad, truth[1].grad), strict=True)
        errors[name] = [relative_error(a, b) for a, b in pairs]
    assert all(c <= 1.1 * p for c, p in zip(errors["chunked"], errors["plain"], strict=True)), (
        errors
    )


def test_float32_is_no_less_accurate_than_full_logits(generator: torch.Generator):
    values = torch.randn(200, 512, generator=generator), torch.randn(90, 512, generator=generator)
    errors = {}
    for name in ("truth", "chunked", "plain"):
        dtype = torch.float64 if name == "truth" else torch.float32
        w, h = (t.to(dtype).requires_grad_() for t in values)
        head = LinearHead(w, scale=0.1)
        chunked = name == "chunked"
        found = log_normaliser(head, h, chunk_size=16) if chunked else head.logits(h).logsumexp(-1)
        found.sum().backward()
        errors[name] = [found, w.grad, h.grad]
    truth = errors.pop("truth")
    of = {
        name: [relative_error(a, b) for a, b in zip(found, truth, strict=True)]
        for name, found in errors.items()
    }
    assert all(c <= 1.1 * p for c, p in zip(of["chunked"], of["plain"], strict=True)), of


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_kept_logits_change_nothing_and_are_not_computed_again(
    softcap: float | None, generator: torch.Generator
):
    hidden = torch.randn(10, 4, generator=generator, requires_grad=True)
    weight = torch.randn(30, 4, generator=generator, requires_grad=True)
    head = LinearHead(weight, None, 1.0, softcap)
    found, products, inner = [], [], LinearHead.logits
    for kept in (0, 1):
        calls: list[int] = []

        def logits(self: Any, part: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(len(part))
            return inner(self, part)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LinearHead, "logits", logits)
            value = log_normaliser(head, hidden, chunk_size=4, kept_mib=kept)
            slope = torch.linspace(-1, 2, 10)
            first = torch.autograd.grad(value, (hidden, weight), slope, retain_graph=True)
            products.append(list(calls))
            again = torch.autograd.grad(value, (hidden, weight), slope)
        found.append([value, *first])
        for one, two in zip(first, again, strict=True):
            assert torch.equal(one, two)
    assert products == [[4, 4, 2, 4, 4, 2], [4, 4, 2]]
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
