"""A critic's costs to go in a model's output layer: ``pi exp(-w g) / Z`` as a plain model (9.8)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tdistill.errors import ModelError
from tdistill.models.head_form import head_form
from tdistill.models.language_model import LanguageModel
from tdistill.training.critic import Critic


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


def fold(lm: LanguageModel, critic: Critic, weight: float) -> LanguageModel:
    """The model whose policy is ``pi exp(-w g) / Z``; changed in place, its head untied.

    Args:
        lm: the student that the critic learned beside.
        critic: of a form that is linear in the hidden state.
        weight: w, of any sign: ``fold(fold(lm, c, w), c, -w)`` is lm but for rounding.

    Raises:
        ModelError: logits are no linear map of the hidden state, or the weight is too large for it.
    """
    model: Any = lm.model
    head, scale = model.get_output_embeddings(), head_scale(model)
    rows = critic.output_rows().to(head.weight)[: len(head.weight)]
    own = nn.Linear(head.in_features, head.out_features, head.bias is not None, device=model.device)
    with torch.no_grad():
        own.load_state_dict(head.state_dict())
        own.weight[: len(rows)] -= weight / scale * rows
        if not own.weight.isfinite().all():
            raise ModelError(
                f"fold: expected an output layer of finite numbers, found others with the values "
                f"of the critic at weight {weight:g}; take a smaller weight, or a smaller "
                "critic.learning_rate"
            )
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False
    model.set_output_embeddings(own.to(head.weight.dtype))
    return lm
