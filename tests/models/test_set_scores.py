from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.core import TopPSets, forward_kl_terms
from tdistill.models.head import LinearHead
from tdistill.models.score_forms import DenseStepScores, LinearStepScores
from tdistill.models.set_scores import SetScores
from world import Dense, live, make_batch, model_view, random_view, student


class Counted(DenseStepScores):
    """Scores that note which full-vocabulary reductions were asked for."""

    calls: list[str]

    def reduce(self, function: Any, *per_step: Tensor, chunk_size: int) -> Tensor:
        self.calls.append("reduce")
        return super().reduce(function, *per_step, chunk_size=chunk_size)

    def rows(self, start: int, stop: int) -> Tensor:
        self.calls.append(f"rows {stop - start}")
        return super().rows(start, stop)


def counted_view(batch: Any) -> tuple[SetScores, list[str]]:
    logits, _ = random_view(batch)
    scores = Counted(logits)
    calls: list[str] = []
    object.__setattr__(scores, "calls", calls)
    return SetScores(scores, batch.sets, batch.action), calls


def test_every_quantity_against_the_full_logits() -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    dense = Dense.of(batch)
    torch.testing.assert_close(view.on_set, logits[batch.sets.step, batch.sets.ids])
    torch.testing.assert_close(view.action, (logits * dense.action).sum(1))
    torch.testing.assert_close(view.log_normaliser, logits.logsumexp(1))
    torch.testing.assert_close(view.maximum, logits.max(1).values)
    torch.testing.assert_close(view.set_value, dense.on_set(logits))
    gradient = torch.autograd.grad(view.log_normaliser.sum(), logits)[0]
    torch.testing.assert_close(gradient, logits.softmax(1))


class Read(DenseStepScores):
    """Scores that note how many tokens were read."""

    counts: list[int]

    def at(self, ids: Tensor, step: Tensor) -> Tensor:
        self.counts.append(len(ids))
        return super().at(ids, step)


@pytest.mark.parametrize("out_of_set", ["insert", "drop"])
def test_actions_are_read_from_their_sets_where_they_are_members(out_of_set: str) -> None:
    batch = make_batch(out_of_set=out_of_set)
    logits, _ = random_view(batch)
    scores = Read(logits)
    counts: list[int] = []
    object.__setattr__(scores, "counts", counts)
    view, steps = SetScores(scores, batch.sets, batch.action), torch.arange(len(batch.action))
    assert torch.equal(view.action, logits[steps, batch.action])
    outside = int(batch.out_of_set.sum())
    assert counts == [len(batch.sets.ids)] + ([outside] if out_of_set == "drop" else [])
    assert outside > 0
    weight = steps + 1.0
    found, expected = (
        torch.autograd.grad((weight * action.sin()).sum(), logits)[0]
        for action in (view.action, logits[steps, batch.action])
    )
    torch.testing.assert_close(found, expected)


def test_costly_parts_are_computed_once_and_only_when_asked_for() -> None:
    view, calls = counted_view(make_batch())
    _ = (view.on_set, view.action, view.set_value)
    assert calls == []
    _ = (view.log_normaliser, view.log_normaliser)
    assert calls == ["reduce"]
    _ = (view.maximum, view.maximum)
    assert calls == ["reduce", "reduce"]


@pytest.mark.parametrize("chunk_size", [1, 5, 23, 100])
def test_the_chunk_size_changes_nothing(chunk_size: int) -> None:
    batch = make_batch()
    model = student()
    plain, chunked = model_view(model, batch), model_view(model, batch)
    chunked.chunk_size = chunk_size
    scores = live().scores(batch.layout)
    for one, other in (
        (plain.log_normaliser, chunked.log_normaliser),
        (plain.maximum, chunked.maximum),
        (
            plain.divergence_from(scores, forward_kl_terms),
            chunked.divergence_from(scores, forward_kl_terms),
        ),
    ):
        torch.testing.assert_close(one, other)
        weights = [p for p in model.parameters() if p.requires_grad]
        gradients = [torch.autograd.grad(x.sum(), weights, retain_graph=True) for x in (one, other)]
        torch.testing.assert_close(gradients[0], gradients[1])


def test_divergence_from_another_model() -> None:
    batch = make_batch()
    logits, view = random_view(batch)
    other, _ = random_view(batch, seed=5)
    wanted, found = other.log_softmax(1), logits.log_softmax(1)
    expected = (wanted.exp() * (wanted - found)).sum(1)
    torch.testing.assert_close(
        view.divergence_from(DenseStepScores(other.detach()), forward_kl_terms), expected
    )
    zero = view.divergence_from(DenseStepScores(logits.detach()), forward_kl_terms)
    torch.testing.assert_close(zero, torch.zeros_like(zero))


def test_leak_is_the_mass_off_the_set_exact_or_at_a_sample_of_steps() -> None:
    batch = make_batch()
    view, calls = counted_view(batch)
    logits, _ = random_view(batch)
    expected = (logits.softmax(1) * ~Dense.of(batch).inside).sum(1).detach()
    for sample, count in ((4, 5), (100, 23)):
        leak, steps = view.leak(sample=sample)
        assert len(steps) == count
        assert steps[0] == 0 and steps.diff().unique().numel() == 1  # evenly spread
        torch.testing.assert_close(leak, expected[steps])
    assert calls == []  # only of those steps
    _ = view.log_normaliser
    leak, steps = view.leak(sample=4)
    assert calls == ["reduce"]
    torch.testing.assert_close(leak, expected)
    assert steps.tolist() == list(range(23))
    assert not leak.requires_grad


def test_scores_of_a_linear_head_and_of_its_logits_agree() -> None:
    batch = make_batch()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(batch.action), 6, generator=generator)
    weight, bias = torch.randn(64, 6, generator=generator), torch.randn(64, generator=generator)
    head = LinearHead(weight, bias, 0.5, 3.0)
    linear = SetScores(LinearStepScores(head, hidden), batch.sets, batch.action, chunk_size=2)
    dense = SetScores(DenseStepScores(head.logits(hidden)), batch.sets, batch.action)
    for name in ("on_set", "action", "log_normaliser", "maximum", "set_value"):
        torch.testing.assert_close(getattr(linear, name), getattr(dense, name), msg=name)
    torch.testing.assert_close(linear.leak()[0], dense.leak()[0])
    assert isinstance(batch.sets, TopPSets)
