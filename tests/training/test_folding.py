"""value_folded_kd, and costs to go folded into the output layer of a finished student."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from costs import gradient, views_of
from tdistill.errors import InvalidValueError, ModelError
from tdistill.models.head import LinearHead
from tdistill.models.language_model import LanguageModel, load, save
from tdistill.training.config import TrainConfig
from tdistill.training.critic import Critic, CriticLearner, load_critic
from tdistill.training.folding import (
    constant_direction,
    fold,
    frequency_prices,
    hidden_states,
    mean_policy,
    unfold,
)
from tdistill.training.objectives import KD, CriticConfig, ValueFoldedKD, ValueTiltedKD
from tdistill.training.objectives.base import Folding
from tdistill.training.train import train_student
from tiny import VOCABULARY, tiny_lm, tokenizer
from world import inside_rows, live, make_batch, model_view, student

FAMILIES = {
    "untied": ("llama", {"tie_word_embeddings": False}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "scaled": ("cohere", {}),
    "divided": ("granite", {"logits_scaling": 3.0}),
}


def drawn_critic(lm: LanguageModel, form: Any) -> Critic:
    """A critic whose every part says something."""
    embeddings: Any = lm.model.get_input_embeddings()
    critic = Critic(embeddings.weight, embeddings.weight.shape[1], CriticConfig(form=form, rank=4))
    torch.manual_seed(1)
    for weight in critic.parameters():
        nn.init.normal_(weight, std=3.0)
    return critic.requires_grad_(False)


def own_logits(lm: LanguageModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the last token [V], and the hidden state that they are read from [1, D]."""
    body: Any = lm.model.base_model
    with torch.no_grad():
        return lm.model(input_ids=ids).logits[0, -1], body(input_ids=ids).last_hidden_state[0, -1:]


@pytest.mark.parametrize("form", ["map", "low-rank", "rows"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_policy_is_tilted_by_the_costs_to_go(kind: str, form: Any, tmp_path: Path) -> None:
    family, changes = FAMILIES[kind]
    lm = tiny_lm(family, **changes)
    critic, ids = drawn_critic(lm, form), torch.tensor([[5, 7, 9, 11]])
    before, hidden = own_logits(lm, ids)
    critic.length.copy_(hidden.square().mean().sqrt())
    to_go = critic.scores(hidden).at(torch.arange(len(before)), torch.zeros(len(before)).long())
    assert to_go.std() > 0.01
    embeddings = lm.model.get_input_embeddings().weight.clone()
    fold(lm, critic, Folding(1.5), ())
    save(lm, tmp_path)
    expected = (before - 1.5 * to_go).log_softmax(-1)
    for model in (lm, load(tmp_path)):
        found = own_logits(model, ids)[0].log_softmax(-1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.model.get_input_embeddings().weight, embeddings)
    unfold(lm, critic, Folding(1.5))
    torch.testing.assert_close(own_logits(lm, ids)[0], before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_tokens_stay_as_frequent_as_they_were(kind: str) -> None:
    family, changes = FAMILIES[kind]
    lm, rows = tiny_lm(family, **changes), list(inside_rows(24))
    critic, states = drawn_critic(lm, "rows"), hidden_states(lm, rows)
    critic.length.copy_(states.square().mean().sqrt())
    before, plain = frequencies(lm, rows), tiny_lm(family, **changes)
    plain.model.load_state_dict(lm.model.state_dict())
    fold(plain, critic, Folding(1.5), rows)
    moved = (frequencies(plain, rows) - before).abs().sum()
    assert moved > 0.2
    assert not critic.price_rows().any()
    original = lm.model.get_output_embeddings().weight.clone()
    fold(lm, critic, Folding(1.5, keep_frequencies=True), rows)
    # Random networks have no direction that is constant, so less than all of it.
    assert (frequencies(lm, rows) - before).abs().sum() < 0.1 * moved
    assert (lm.model.get_output_embeddings().weight - original).abs().max() > 0.01
    unfold(lm, critic, Folding(1.5, keep_frequencies=True))
    again = lm.model.get_output_embeddings().weight
    torch.testing.assert_close(again, original, rtol=1e-4, atol=1e-5)


def frequencies(lm: LanguageModel, rows: Any) -> Tensor:
    """Mean probability of each token at the steps of responses, by the model's own logits."""
    found = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        with torch.no_grad():
            logits = lm.model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1]
        found.append(logits[:, : lm.vocabulary_size].softmax(-1))
    return torch.cat(found).mean(0)


def test_prices_are_those_of_a_bias_where_states_have_a_constant() -> None:
    """Against the minimiser of the convex mean of log Z + lambda . target, found by Newton."""
    torch.manual_seed(0)
    states = torch.cat([torch.ones(40, 1), torch.randn(40, 3)], 1)
    weight, costs = torch.randn(5, 4), torch.randn(5, 4)
    torch.testing.assert_close(constant_direction(states), torch.eye(4)[0], rtol=0, atol=1e-4)
    head = LinearHead(weight, scale=0.5)
    price, constant = frequency_prices(head, costs, states)
    target = (0.5 * states @ weight.T).softmax(-1).mean(0)
    tilted = (0.5 * states @ weight.T - states @ costs.T).double()
    best = torch.zeros(5, dtype=torch.float64)
    for _ in range(30):
        policy = (tilted - best).softmax(-1)
        curvature = torch.diag(policy.mean(0)) - policy.T @ policy / len(policy)
        best += torch.linalg.lstsq(curvature, policy.mean(0) - target.double()).solution
    torch.testing.assert_close(mean_policy(head, states), target)
    moved = mean_policy(
        LinearHead(weight - 2 * (costs + torch.outer(price, constant)), scale=0.5), states
    )
    assert (moved - target).abs().sum() < 1e-3
    relative = price.double() - price.double().mean()
    torch.testing.assert_close(relative, best - best.mean(), rtol=0, atol=0.02)
    assert torch.equal(constant, constant_direction(states))


def test_a_capped_output_layer_is_refused_before_training(tmp_path: Path) -> None:
    lm = tiny_lm("gemma2")
    with pytest.raises(ModelError, match="found a soft cap of 2"):
        trained(lm, ValueFoldedKD(), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("length", "weight"), [(0.0, 1.0), (1.0, 1e39)])
def test_what_is_no_number_is_not_folded(length: float, weight: float) -> None:
    lm = tiny_lm("llama")
    critic = drawn_critic(lm, "map")
    critic.length.fill_(length)
    before = lm.model.get_output_embeddings().weight.clone()
    with pytest.raises(ModelError, match=re.escape(f"at weight {weight:g}; take a smaller")):
        fold(lm, critic, Folding(weight), ())
    assert torch.equal(lm.model.get_output_embeddings().weight, before)


def trained(lm: LanguageModel, objective: Any, folder: Path) -> LanguageModel:
    return train_student(
        lm,
        objective,
        list(inside_rows(8)),
        TrainConfig(steps=4, batch_size=4, warmup_steps=0, learning_rate=1e-3),
        checkpoints=folder / "checkpoints",
        vocabulary_size=VOCABULARY,
        source=live(),
        critic_folder=folder,
    )[0]


def test_training_is_that_of_kd_and_the_end_is_a_fold(tmp_path: Path) -> None:
    found = {}
    for name, objective in {
        "kd": KD(),
        "plain": ValueFoldedKD(weight=0.0),
        "folded": ValueFoldedKD(weight=2.0),
    }.items():
        lm = LanguageModel(student(), tokenizer(), "student")
        found[name] = trained(lm, objective, tmp_path / name)
    weights = {name: lm.model.state_dict() for name, lm in found.items()}
    for name, weight in weights["kd"].items():
        assert torch.equal(weights["plain"][name], weight)
    head = weights["folded"]["lm_head.weight"]
    assert (head - weights["kd"]["lm_head.weight"]).abs().max() > 1e-3
    critic = load_critic(tmp_path / "plain", ValueFoldedKD().critic)
    fold(found["plain"], critic, Folding(2.0), ())
    again = found["plain"].model.state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in weights["folded"].items())


def test_the_usual_length_of_hidden_states_is_that_of_the_updates() -> None:
    batch, network = make_batch(), student()
    learner = CriticLearner(network, CriticConfig(), torch.device("cpu"))
    view = model_view(network, batch)
    assert view.scores.hidden is not None
    expected = view.scores.hidden.square().mean(1).sqrt().mean().detach()
    for _ in range(3):
        for _ in range(2):  # micro-batches
            learner.scores(view, batch)
        learner.update(factor=1.0, mean=lambda values: values)
        torch.testing.assert_close(learner.critic.length, expected)


def test_the_loss_is_kds_and_the_critic_that_of_the_untilted() -> None:
    batch = make_batch()
    logits, views = views_of(batch)
    found = ValueFoldedKD(discount=0.5).loss(views, batch)
    plain = KD().loss(views, batch).loss
    assert torch.equal(found.loss, plain)
    assert torch.equal(gradient(found.loss, logits), gradient(plain, logits))
    untilted = ValueTiltedKD(beta=0.0, centre="none", discount=0.5).loss(views, batch)
    assert found.critic is not None and untilted.critic is not None
    torch.testing.assert_close(found.critic, untilted.critic, rtol=1e-5, atol=1e-6)
    assert found.critic.any()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"weight": -1.0}, "weight: expected at least 0"),
        ({"critic": CriticConfig(form="mlp")}, "critic.form: expected map, low-rank or rows"),
        ({"support": "vocabulary"}, "support: expected one that reads sets"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidValueError, match=why):
        ValueFoldedKD(**changes)
