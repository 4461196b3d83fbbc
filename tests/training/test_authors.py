from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.errors import InvalidValueError
from tdistill.evidence.batch import Batch
from tdistill.training.objectives import AuthorsCode, BellmanDistill, SeqKD
from world import Dense, inside_rows, make_batch, model_view, random_view, student


def dense(logits: Tensor, inside: Tensor, batch: Batch, objective: AuthorsCode) -> Tensor:
    """The released loss over [T, V], every action's difference written out."""
    q = torch.maximum(logits - logits.max(1, keepdim=True).values, torch.tensor(-10.0).double())
    u = q.softmax(1) * inside / 0.8 + objective.epsilon
    u = u / u.sum(1, keepdim=True)
    value = (u * (q - u.log())).sum(1)
    ahead = batch.transitions.discount * Dense.of(batch).following(value, batch)
    difference = q * inside - ahead[:, None]
    loss = value - ahead - difference.mean(1)
    loss = loss + 2.5 * difference.square().mean(1) if objective.chi_square else loss
    cut = [bool(t) for t in batch.transitions.can_bootstrap]
    return torch.stack([x if keep else 0 * x for x, keep in zip(loss, cut, strict=True)])


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, len(loss), dtype=loss.dtype)
    return torch.autograd.grad((loss * weights).sum(), logits, retain_graph=True)[0]


@pytest.mark.parametrize("chi_square", [True, False])
@pytest.mark.parametrize("out_of_set", ["insert", "drop"])
@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_equals_the_dense_formula_on_the_teachers_own_sets(
    chi_square: bool, out_of_set: Any, chunk_size: int
) -> None:
    objective = AuthorsCode(chi_square=chi_square, epsilon=1e-4)
    batch = make_batch(set_top_p=0.8, out_of_set=out_of_set)
    logits, view = random_view(batch)
    view.chunk_size = chunk_size
    # The response's token is never put into the set: it does not enter this loss.
    inside = Dense.of(make_batch(set_top_p=0.8, out_of_set="drop")).inside
    assert batch.out_of_set.any()
    found = objective.step_loss(view, batch).loss
    expected = dense(logits, inside, batch, objective)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, logits))


def test_the_responses_token_does_not_enter() -> None:
    batch = make_batch(list(inside_rows()))
    other = replace(batch, action=batch.action.flip(0))
    found = []
    for each in (batch, other):
        _, view = random_view(each)
        found.append(AuthorsCode().step_loss(view, each).loss)
    torch.testing.assert_close(found[0], found[1])
    sampled = BellmanDistill(linear_term="sampled")
    one, swapped = (sampled.step_loss(random_view(b)[1], b).loss for b in (batch, other))
    assert (one - swapped).abs().max() > 0.1  # it does enter (4.2)


def trained(objective: Any) -> tuple[list[float], list[float]]:
    """Thirty updates: the losses, and the mean log-probability of the teacher's tokens."""
    model, batch = student(), make_batch(list(inside_rows()))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses, chosen = [], []
    for _ in range(31):
        view = model_view(model, batch)
        loss = objective.step_loss(view, batch).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        chosen.append(float((view.action - view.log_normaliser).detach().mean()))
    return losses, chosen


def test_it_lowers_its_loss_without_learning_the_teachers_tokens() -> None:
    _, cloned = trained(SeqKD())
    losses, chosen = trained(AuthorsCode())
    assert losses[-1] < 0.9 * losses[0]
    assert chosen[-1] - chosen[0] < 0.2 * (cloned[-1] - cloned[0])
    losses, chosen = trained(AuthorsCode(chi_square=False))
    assert losses[-1] < losses[0] - 1.0
    assert chosen[-1] < chosen[0]  # further from the teacher


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon: expected above 0"),
        ({"set_top_p": None}, "set_top_p: expected a mass"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        AuthorsCode(**options)


def test_it_reads_the_sets_and_needs_no_live_teacher() -> None:
    assert AuthorsCode().needs_sets
    assert not AuthorsCode().needs_live_teacher
    assert AuthorsCode().card.family == "comparison"  # outside the recommended set
