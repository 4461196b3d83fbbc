from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tdistill.core import (
    TopPSets,
    sampled_log_normaliser,
    segment_logsumexp,
    set_membership,
    top_p_sets,
)

STEPS, VOCABULARY = 12, 400


@pytest.fixture
def logits(generator: torch.Generator) -> Tensor:
    """Peaked rows over a vocabulary."""
    return 3 * torch.randn(STEPS, VOCABULARY, generator=generator, dtype=torch.float64)


def estimate(
    logits: Tensor, tokens: Tensor, log_weight: Tensor, sets: TopPSets | None = None
) -> Tensor:
    sets = sets_of(logits) if sets is None else sets
    member = set_membership(sets.ids, sets.offsets, tokens)
    on_set = logits[sets.step, sets.ids]
    return sampled_log_normaliser(on_set, sets.offsets, logits[:, tokens], log_weight, member)


def sets_of(logits: Tensor, p: float = 0.5) -> TopPSets:
    return top_p_sets(logits.detach().log_softmax(-1), p)


def uniform(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    tokens = torch.randperm(VOCABULARY, generator=generator)[:count]
    weight = torch.full((count,), VOCABULARY / count, dtype=torch.float64)
    return tokens, weight.log()


def test_membership_is_that_of_a_loop(generator: torch.Generator):
    sets = top_p_sets((2 * torch.randn(9, 30, generator=generator)).log_softmax(-1), 0.7)
    tokens = torch.randperm(30, generator=generator)[:11]
    found = set_membership(sets.ids, sets.offsets, tokens)
    rows = [set(sets.row(t)[0].tolist()) for t in range(9)]
    assert found.tolist() == [[token in row for token in tokens.tolist()] for row in rows]
    assert found.any() and not found.all()


def test_every_token_at_weight_1_is_exact(logits: Tensor, generator: torch.Generator):
    logits.requires_grad_()
    tokens = torch.randperm(VOCABULARY, generator=generator)
    found = estimate(logits, tokens, torch.zeros(VOCABULARY, dtype=torch.float64))
    torch.testing.assert_close(found, logits.logsumexp(1))
    (grad,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(grad, logits.softmax(1))


def test_members_are_counted_once_and_others_by_their_weight():
    on_set, offsets = torch.tensor([2.0, 3.0, 5.0]).log(), torch.tensor([0, 2, 3])
    member = set_membership(torch.tensor([0, 1, 2]), offsets, torch.tensor([2, 1, 7]))
    negatives = torch.tensor([[7.0, 3.0, 1.0], [5.0, 11.0, 2.0]]).log()
    log_weight = torch.tensor([2.0, 4.0, 10.0]).log()
    found = sampled_log_normaliser(on_set, offsets, negatives, log_weight, member)
    # 2 + 3 + [2 x 7] + [10 x 1]; 5 + [4 x 11] + [10 x 2]
    torch.testing.assert_close(found.exp(), torch.tensor([29.0, 69.0]))


def test_where_all_negatives_are_members_the_value_of_the_set_is_left():
    on_set = torch.tensor([1.0, 2.0], requires_grad=True)
    negatives = torch.tensor([[2.0]], requires_grad=True)
    offsets, member = torch.tensor([0, 2]), torch.tensor([[True]])
    found = sampled_log_normaliser(on_set, offsets, negatives, torch.zeros(1), member)
    torch.testing.assert_close(found, segment_logsumexp(on_set, offsets))
    grads = torch.autograd.grad(found.sum(), (on_set, negatives))
    assert grads[0].sum() == pytest.approx(1.0)
    assert grads[1].tolist() == [[0.0]]


@pytest.mark.slow
def test_the_sum_is_unbiased_and_its_logarithm_lies_below(
    logits: Tensor, generator: torch.Generator
):
    exact, sets = logits.logsumexp(1), sets_of(logits)
    ratio = torch.stack(
        [(estimate(logits, *uniform(40, generator), sets) - exact).exp() for _ in range(3000)]
    )
    error = ratio.std(0) / 3000**0.5
    assert ((ratio.mean(0) - 1).abs() < 4 * error).all()
    assert (error < 0.02).all()  # so a bias of 8% at any step would be seen
    assert (ratio.log().mean(0) < 0).all()


def test_the_error_falls_as_one_over_the_root_of_the_number(generator: torch.Generator):
    """Of value and gradient; with replacement-free draws of a small share of the vocabulary."""
    logits = torch.randn(STEPS, 20_000, generator=generator, dtype=torch.float64)
    exact, policy, sets = logits.logsumexp(1), logits.softmax(1), sets_of(logits, p=0.02)
    sd, bias, slope = {}, {}, {}
    for count in (50, 200, 800):
        errors, gradients = [], []
        for _ in range(60):
            z = logits.clone().requires_grad_()
            tokens = torch.randperm(20_000, generator=generator)[:count]
            weight = torch.full((count,), 20_000 / count, dtype=torch.float64)
            found = estimate(z, tokens, weight.log(), sets)
            errors.append(found.detach() - exact)
            gradients.append((torch.autograd.grad(found.sum(), z)[0] - policy).norm())
        stacked = torch.stack(errors)
        sd[count], bias[count] = float(stacked.std(0).mean()), float(stacked.mean())
        slope[count] = float(torch.stack(gradients).mean())
    for few, many in ((50, 200), (200, 800)):
        assert sd[few] / sd[many] == pytest.approx(2.0, rel=0.25)
        assert slope[few] / slope[many] == pytest.approx(2.0, rel=0.25)
    assert -0.05 < bias[50] < 0.0
    assert abs(bias[800]) < abs(bias[50]) / 4


def test_gradcheck(logits: Tensor, generator: torch.Generator):
    z, draw = logits[:3, :20].clone().requires_grad_(), torch.tensor([1, 5, 17])
    assert torch.autograd.gradcheck(lambda x: estimate(x, draw, torch.ones(3)), z)
