"""A critic's costs to go in a model's output layer: ``pi exp(-w g) / Z`` as a plain model (9.8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tdistill.errors import ModelError
from tdistill.models.architecture import note_untied
from tdistill.models.head import LinearHead
from tdistill.models.head_form import head_form
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import Tokens, evenly_chosen, in_passes, lay_out
from tdistill.models.scores import step_scores
from tdistill.training.critic import Critic
from tdistill.training.objectives.base import Folding

MEASURED_TOKENS = 16_384
"""About how many tokens, prompts included, frequencies are measured on."""

_ROUNDS, _CLOSE = 50, 1e-3  # of the prices; a difference of frequencies, in sum, that is none
_STEPS_AT_ONCE, _ROWS_AT_ONCE = 128, 16
_LEAST = 1e-30
_RIDGE = 1e-5  # of the mean square: layer norm leaves directions in which nothing is said


def head_scale(model: Any) -> float:
    """The factor on the output layer's linear map, where logits are that and nothing more.

    Raises:
        ModelError: something else follows it, so that no rows of it give a tilted policy.
    """
    form = head_form(model)
    if form is None or form.softcap is not None:
        found = "none" if form is None else f"a soft cap of {form.softcap}"
        raise ModelError(
            f"{type(model).__name__}: expected logits that are a linear map of the hidden state, "
            f"which values can be folded into; found {found}; take value_tilted_kd"
        )
    return form.scale


@torch.no_grad()
def fold(
    lm: LanguageModel, critic: Critic, folding: Folding, rows: Sequence[Tokens]
) -> LanguageModel:
    """The model whose policy is ``pi exp(-w g) / Z``; changed in place, its head untied.

    Args:
        lm: the student that the critic learned beside.
        critic: of a form that is linear in the hidden state; it keeps the prices of (9.9).
        folding: w, and whether every token stays as frequent as it was.
        rows: responses on which it does; some of them are read, evenly spread.

    Raises:
        ModelError: logits are no linear map of the hidden state, or the weight is too large for it.
    """
    model: Any = lm.model
    scale, costs = head_scale(model), folding.weight * critic.output_rows()
    critic.price.zero_()
    critic.constant.zero_()
    if folding.keep_frequencies:
        layer = model.get_output_embeddings()
        bias = None if layer.bias is None else layer.bias.float()
        size = min(len(costs), len(layer.weight))
        head = LinearHead(layer.weight.float(), bias, scale, vocabulary_size=size)
        states = hidden_states(lm, evenly_chosen(rows, MEASURED_TOKENS))
        price, constant = frequency_prices(head, costs[: head.size], states)
        critic.price[: head.size] = price
        critic.constant.copy_(constant)
    return _less(lm, costs + critic.price_rows(), folding.weight)


@torch.no_grad()
def unfold(lm: LanguageModel, critic: Critic, folding: Folding) -> LanguageModel:
    """What :func:`fold` was given, but for rounding; changed in place, its head untied."""
    costs = folding.weight * critic.output_rows()
    return _less(lm, -costs - critic.price_rows(), folding.weight)


def hidden_states(lm: LanguageModel, rows: Sequence[Tokens]) -> Float[Tensor, "T D"]:
    """What the output layer reads at every step of responses."""
    found = []
    for part in in_passes(rows, _ROWS_AT_ONCE):
        layout = lay_out([rows[i] for i in part], lm.pad_id).to(lm.device)
        states = step_scores(lm.model, layout, vocabulary_size=lm.vocabulary_size).hidden
        assert states is not None, "a linear output layer reads them"
        found.append(states.float())
    return torch.cat(found)


def constant_direction(states: Float[Tensor, "T D"]) -> Float[Tensor, " D"]:
    """u of least ``sum (u . h - 1)^2``: what a layer without a bias has in a bias's place.

    Example:
        >>> constant_direction(torch.tensor([[2.0, 1.0], [2.0, -1.0]]))
        tensor([0.5000, 0.0000])
    """
    states = states.double()
    products = states.T @ states / len(states)
    products += _RIDGE * products.diagonal().mean() * torch.eye(len(products)).to(products)
    return torch.linalg.solve(products, states.mean(0)).float()


def mean_policy(head: LinearHead, states: Float[Tensor, "T D"]) -> Float[Tensor, " V"]:
    """How frequent each token is over states."""
    total = states.new_zeros(head.size)
    for part in states.split(_STEPS_AT_ONCE):
        total += head.logits(part).softmax(-1).sum(0)
    return total / len(states)


def frequency_prices(
    head: LinearHead, costs: Float[Tensor, "V D"], states: Float[Tensor, "T D"]
) -> tuple[Float[Tensor, " V"], Float[Tensor, " D"]]:
    """Prices lambda of (9.9) and the direction u that they are charged along.

    Args:
        head: the policy before its tilt.
        costs: rows of w g.
        states: on which every token keeps its mean probability, as nearly as u . h is constant.
    """
    constant, target = constant_direction(states), mean_policy(head, states).clamp(min=_LEAST)
    price = best = torch.zeros_like(target)
    least = math.inf
    for _ in range(_ROUNDS):
        rows = (costs + torch.outer(price, constant)) / head.scale
        tilted = replace(head, weight=head.weight[: head.size] - rows)
        found = mean_policy(tilted, states).clamp(min=_LEAST)
        apart = float((found - target).abs().sum())
        if not apart < least:  # the direction is not constant enough for more
            break
        least, best = apart, price
        if apart < _CLOSE:
            break
        price = price + (found / target).log()
    return best, constant


def _less(lm: LanguageModel, rows: Float[Tensor, "V D"], weight: float) -> LanguageModel:
    """The model with rows taken from its logits; ``weight`` is what an error names."""
    model: Any = lm.model
    head, scale = model.get_output_embeddings(), head_scale(model)
    own = nn.Linear(head.in_features, head.out_features, head.bias is not None, device=model.device)
    own.load_state_dict(head.state_dict())
    own.weight[: len(rows)] -= (rows / scale)[: len(own.weight)]
    if not own.weight.isfinite().all():
        raise ModelError(
            f"fold: expected an output layer of finite numbers, found others with the values of "
            f"the critic at weight {weight:g}; take a smaller weight, or a smaller "
            "critic.learning_rate"
        )
    note_untied(model)
    model.set_output_embeddings(own.to(head.weight.dtype))
    return lm
