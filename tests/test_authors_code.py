"""The example docs/authors_code.py: its formulas token by token, and as an objective."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import docs.authors_code
import pytest
import torch
from docs.authors_code import AuthorsCode, authors_code_loss, authors_code_terms
from torch import Tensor

from tdistill import strict
from tdistill.errors import InvalidValueError
from tdistill.evidence.batch import Batch
from tdistill.recipe import Recipe
from tdistill.training.objectives import BellmanDistill, SeqKD, Views
from world import Dense, inside_rows, make_batch, model_view, random_view, student

EPSILON, TOP_P = 1e-4, 0.8


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
    found = objective.loss(Views(view), batch).loss
    expected = dense(logits, inside, batch, objective)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, logits))


def test_the_responses_token_does_not_enter() -> None:
    batch = make_batch(list(inside_rows()))
    other = replace(batch, action=batch.action.flip(0))
    found = []
    for each in (batch, other):
        _, view = random_view(each)
        found.append(AuthorsCode().loss(Views(view), each).loss)
    torch.testing.assert_close(found[0], found[1])
    sampled = BellmanDistill(linear_term="sampled")
    one, swapped = (sampled.loss(Views(random_view(b)[1]), b).loss for b in (batch, other))
    assert (one - swapped).abs().max() > 0.1  # it does enter (4.2)


def trained(objective: Any) -> tuple[list[float], list[float]]:
    """Thirty updates: the losses, and the mean log-probability of the teacher's tokens."""
    model, batch = student(), make_batch(list(inside_rows()))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses, chosen = [], []
    for _ in range(31):
        view = model_view(model, batch)
        loss = objective.loss(Views(view), batch).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        chosen.append(float((view.action - view.log_normaliser).detach().mean()))
    return losses, chosen


@pytest.mark.slow
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


@pytest.fixture
def response(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits of 6 states over 40 tokens, some far below the best, and sets of 1 to 12 of them."""
    z = 6 * torch.randn(6, 40, generator=generator, dtype=torch.float64)
    inside = torch.zeros(6, 40, dtype=torch.bool)
    for t in range(6):
        inside[t, torch.randperm(40, generator=generator)[: 1 + (5 * t) % 12]] = True
    assert ((z - z.amax(-1, keepdim=True)) < -10).any()
    return z.requires_grad_(), inside


def released(z: Tensor, inside: Tensor, gamma: list[float], chi_square: bool) -> Tensor:
    """Their loss token by token and step by step: a difference for every action, then means."""
    values, rewards = [], []
    for t in range(len(z)):
        q = torch.maximum(z[t] - z[t].max(), torch.tensor(-10.0, dtype=z.dtype))
        pi = q.exp() / q.exp().sum()
        u = torch.stack([pi[a] / TOP_P * float(inside[t, a]) + EPSILON for a in range(40)])
        u = u / u.sum()
        values.append(sum(u[a] * (q[a] - u[a].log()) for a in range(40)))
        rewards.append(q * inside[t])
    losses = []
    for t in range(len(z)):
        ahead = gamma[t] * (values[t + 1] if t + 1 < len(z) else 0.0)
        difference = rewards[t] - ahead
        loss = -difference.mean() + (values[t] - ahead)
        if chi_square:
            loss = loss + 2.5 * difference.square().mean()
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize("chi_square", [True, False])
def test_equals_the_released_loss_in_value_and_gradient(
    response: tuple[Tensor, Tensor], chi_square: bool
):
    z, inside = response
    gamma = [0.99] * 5 + [0.0]
    value, q_mean, square = authors_code_terms(z, inside, top_p=TOP_P, epsilon=EPSILON).unbind(-1)
    following = torch.cat([value[1:], value.new_zeros(1)])
    discount = torch.tensor(gamma, dtype=z.dtype)
    found = authors_code_loss(value, q_mean, square, following, discount, chi_square=chi_square)
    expected = released(z, inside, gamma, chi_square)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(x.sum(), z, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


def test_without_chi_square_the_future_cancels(response: tuple[Tensor, Tensor]):
    z, inside = response
    value, q_mean, square = authors_code_terms(z, inside, top_p=TOP_P, epsilon=EPSILON).unbind(-1)
    for discount in (torch.zeros(6).double(), torch.ones(6).double()):
        found = authors_code_loss(value, q_mean, square, value, discount, chi_square=False)
        torch.testing.assert_close(found, value - q_mean)


def test_a_constant_per_state_changes_nothing(response: tuple[Tensor, Tensor]):
    z, inside = response
    found, moved = (
        authors_code_terms(x, inside, top_p=TOP_P, epsilon=EPSILON) for x in (z, z + 7.0)
    )
    torch.testing.assert_close(found, moved)


def test_the_terms_pass_gradcheck(response: tuple[Tensor, Tensor]):
    z, inside = response
    assert torch.autograd.gradcheck(
        lambda z: authors_code_terms(z, inside, top_p=TOP_P, epsilon=EPSILON), z
    )


def test_a_recipe_names_it_by_its_import_path() -> None:
    settings: dict[str, Any] = {"teacher": {"path": "t"}, "student": {"layers": 2}}
    named = {"objective": f"{Path(docs.authors_code.__file__)}:AuthorsCode", "epsilon": 1e-5}
    recipe = strict.structure(
        Recipe, settings | {"objectives": {"authors_code": named}, "distilled": "authors_code"}
    )
    found: Any = recipe.objectives["authors_code"]
    assert (found.name, found.epsilon) == ("authors_code", 1e-5)
    assert strict.structure(Recipe, strict.dump(recipe)) == recipe
