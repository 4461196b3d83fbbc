from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdistill.errors import InvalidValueError
from tdistill.models.negatives import Occurrences, draw_negatives
from tdistill.training.objectives import Views
from world import PAPER, make_batch, model_view, random_view, student

IDS = Occurrences.of(torch.tensor([3] * 50 + [7] * 20 + [9, 11, 400]))
SAMPLED = replace(PAPER, shift="raw", q_min=None, normaliser="sampled", negatives=24)


@pytest.mark.parametrize("count", [1, 10, 100, 499])
def test_as_many_distinct_tokens_as_asked_for(count: int) -> None:
    for _ in range(20):
        tokens, log_weight = draw_negatives(IDS, 500, count)
        assert len(tokens) == len(tokens.unique()) == len(log_weight) == count
        assert tokens.min() >= 0 and tokens.max() < 500
        assert (log_weight >= 0).all()


def test_every_token_once_where_there_are_no_more() -> None:
    tokens, log_weight = draw_negatives(IDS, 500, 500)
    assert tokens.tolist() == list(range(500))
    assert not log_weight.any()


def test_a_token_weighs_one_over_the_chance_of_drawing_it() -> None:
    torch.manual_seed(0)
    draws, weights = 4000, torch.zeros(500)
    for _ in range(draws):
        tokens, log_weight = draw_negatives(IDS, 500, 20)
        weights[tokens] += log_weight.exp()
    mean, top = weights / draws, [3, 7]
    torch.testing.assert_close(mean[top], torch.ones(2), rtol=0.05, atol=0.0)
    assert mean.mean() == pytest.approx(1.0, abs=0.02)
    assert mean.min() > 0.5 and mean.max() < 1.6  # a weight of 40 makes each mean this wide
    assert draw_negatives(IDS, 500, 20)[0].tolist().count(3) == 1  # frequent: always there


def test_the_work_does_not_grow_with_the_vocabulary() -> None:
    """No operation makes a tensor of the length of the vocabulary."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            self.size = max([self.size, *sizes])
            return out

    with Largest() as largest:
        tokens, _ = draw_negatives(IDS, 1_000_000, 100)
    assert len(tokens.unique()) == 100
    assert 100 <= largest.size < 1000


def test_the_draw_follows_the_global_generator() -> None:
    torch.manual_seed(5)
    first, second = (draw_negatives(IDS, 500, 30)[0] for _ in range(2))
    torch.manual_seed(5)
    assert draw_negatives(IDS, 500, 30)[0].equal(first)
    assert not first.equal(second)
    own = [draw_negatives(IDS, 500, 30, torch.Generator().manual_seed(n))[0] for n in (5, 5, 6)]
    assert own[0].equal(own[1])
    assert not own[0].equal(own[2])


def test_occurrences_in_parts_are_those_of_the_whole() -> None:
    ids = torch.tensor([9, 3, 3, 7, 3, 9, 400])
    parts = [Occurrences.of(part) for part in ids.split([3, 1, 3])]
    for order in (parts, parts[::-1]):
        found, whole = Occurrences.total(order), Occurrences.of(ids)
        assert found.ids.equal(whole.ids)
        assert found.count.tolist() == [3, 1, 2, 1]


def test_with_every_token_the_sampled_normaliser_is_the_exact_one() -> None:
    batch = make_batch()
    for objective in (SAMPLED, replace(SAMPLED, shift="normalised")):
        logits, view = random_view(batch)
        exact = replace(objective, normaliser="vocabulary").loss(Views(view), batch).loss
        found = replace(objective, negatives=64).loss(Views(view), batch).loss
        torch.testing.assert_close(found, exact)
        slopes = [
            torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (found, exact)
        ]
        torch.testing.assert_close(*slopes)


def test_the_mean_over_draws_of_the_sum_and_of_the_gradient_comes_to_the_exact_one() -> None:
    torch.manual_seed(1)
    batch = make_batch()
    logits, view = random_view(batch, scale=1.0)
    estimates = [view.sampled_log_normaliser(24) for _ in range(1500)]
    ratio = torch.stack([(e - view.log_normaliser).exp().detach() for e in estimates])
    torch.testing.assert_close(ratio.mean(0), torch.ones_like(ratio[0]), rtol=0.02, atol=0.0)
    assert (ratio.log().mean(0) < 0).sum() > 0.9 * len(logits)
    # exp of the estimate is linear in the sum, so its gradient is unbiased, too
    total = torch.stack(estimates).exp().mean(0).sum()
    found = torch.autograd.grad(total, logits)[0]
    exact = logits.exp()
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_it_holds_down_the_mass_off_the_set_as_the_exact_one_does() -> None:
    batch = make_batch()
    leaks = {}
    for name in ("set", "sampled", "vocabulary"):
        torch.manual_seed(0)
        model = student()
        objective = replace(SAMPLED, normaliser=name, phi="identity")
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(30):
            optimizer.zero_grad()
            objective.loss(Views(model_view(model, batch)), batch).loss.mean().backward()
            optimizer.step()
        view = model_view(model, batch)
        leaks[name] = float(view.leak()[0].mean())
    assert leaks["sampled"] < 0.85 * leaks["set"], leaks
    # 24 of 64 tokens: the estimate is below the exact value, so a little more mass stays outside.
    assert leaks["sampled"] == pytest.approx(leaks["vocabulary"], abs=0.07), leaks


def test_no_negatives_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="negatives: expected at least 1, found 0"):
        replace(SAMPLED, negatives=0)
