from __future__ import annotations

from typing import Any

import pytest
import torch
from heads import HEADS, STEPS, WIDTH, Allocations, assert_same, make_head
from torch import Tensor

from tdistill.models.head import LinearHead, map_steps

MEMBERS = 75


@pytest.fixture
def hidden(generator: torch.Generator) -> Tensor:
    return torch.randn(STEPS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.fixture
def members(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ids = torch.randint(33, (MEMBERS,), generator=generator)
    return ids, torch.randint(STEPS, (MEMBERS,), generator=generator).sort().values


def test_hand_computed_values():
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    head = LinearHead(weight, torch.tensor([0.5, 0.0]), scale=0.5, softcap=4.0)
    hidden = torch.tensor([[3.0, 4.0]])
    linear = torch.tensor([(3.0 + 0.5) / 2, 8.0 / 2])
    expected = 4 * torch.tanh(linear / 4)
    torch.testing.assert_close(head.logits(hidden)[0], expected)
    found = head.scores(hidden, torch.tensor([1, 0]), torch.tensor([0, 0]))
    torch.testing.assert_close(found, expected[[1, 0]])


@pytest.mark.parametrize("options", HEADS)
def test_scores_are_the_logits_at_the_members(
    options: dict[str, Any], hidden: Tensor, members: tuple[Tensor, Tensor]
):
    head = make_head(options)
    ids, step = members
    assert_same(head.scores(hidden, ids, step), head.logits(hidden)[step, ids], head, hidden)


@pytest.mark.parametrize("options", HEADS)
def test_columns_are_those_of_the_full_logits(hidden: Tensor, options: dict[str, Any]):
    head, ids = make_head(options), torch.tensor([7, 0, 32, 7])
    assert_same(head.columns(hidden, ids), head.logits(hidden)[:, ids], head, hidden)


@pytest.mark.parametrize("options", HEADS)
def test_the_slope_is_the_derivative_with_respect_to_the_linear_map(options: dict[str, Any]):
    head = make_head(options | {"bias": False})
    hidden = torch.linspace(-1, 1, 2 * WIDTH, dtype=torch.float64).view(2, WIDTH).requires_grad_()
    logits = head.logits(hidden)
    (expected,) = torch.autograd.grad(logits.sum(), hidden)
    slope = head.slope(logits) * torch.ones_like(logits)
    torch.testing.assert_close(slope @ head.weight[: head.size], expected)


def test_a_cut_head_is_the_head_without_the_rows_that_fill_the_matrix(hidden: Tensor):
    head = make_head({"bias": True, "scale": 2.0, "softcap": 3.0, "vocabulary_size": 33})
    cut = head.cut(head.weight, head.bias, torch.float64)
    assert (head.size, cut.size, len(cut.weight)) == (33, 33, 33)
    assert torch.equal(cut.logits(hidden), head.logits(hidden))
    assert head.logits(hidden).shape == (STEPS, 33)
    assert head.cut(head.weight, head.bias, torch.float32).weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", HEADS)
def test_half_precision_scores_are_float32_and_close(
    dtype: torch.dtype, options: dict[str, Any], hidden: Tensor, members: tuple[Tensor, Tensor]
):
    head, (ids, step) = make_head(options, dtype), members
    scores = head.scores(hidden.to(dtype), ids, step)
    logits = head.logits(hidden.to(dtype))
    assert scores.dtype == logits.dtype == torch.float32
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(scores, logits[step, ids], rtol=8 * unit, atol=16 * unit)


def test_columns_cost_their_rows_and_one_gradient_of_the_weight():
    head = LinearHead(torch.randn(500, 4).requires_grad_())
    with Allocations() as made:
        head.columns(torch.randn(9, 4).requires_grad_(), torch.tensor([5, 400])).sum().backward()
    assert [size for size in made.sizes if size > 9 * 4] == [500 * 4]


def test_map_steps_over_several_tensors():
    a, b = torch.arange(10.0).view(5, 2).requires_grad_(), torch.arange(5.0)
    for chunk_size in (1, 2, 5, 9):
        found = map_steps(lambda x, y: x * y[:, None], a, b, chunk_size=chunk_size)
        assert torch.equal(found, a * b[:, None])
        (grad,) = torch.autograd.grad(found.sum(), a)
        assert torch.equal(grad, b[:, None].expand(5, 2))


def test_chunks_are_recomputed_in_the_backward_pass_only():
    seen: list[int] = []

    def function(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return x.exp()

    x = torch.ones(5, requires_grad=True)
    out = map_steps(function, x, chunk_size=2)
    assert seen == [2, 2, 1]
    out.sum().backward()
    assert sorted(seen) == [1, 1, 2, 2, 2, 2]
    seen.clear()
    with torch.no_grad():
        map_steps(function, x, chunk_size=2)
    assert seen == [2, 2, 1]


def test_map_steps_refuses_tensors_of_different_lengths():
    with pytest.raises(ValueError, match="argument"):
        map_steps(lambda x, y: x + y, torch.ones(5), torch.ones(2), chunk_size=2)
