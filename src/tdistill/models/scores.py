"""Scores of the steps of a batch: the one place where a network's outputs are read.

The linear form reads hidden states times the needed rows of the output layer; the dense form, for
heads that are not a linear map, keeps the full logits of the steps. Both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tdistill.errors import ModelError
from tdistill.models.finite import has_numbers, refuse_step
from tdistill.models.head import LinearHead, dense_gradient
from tdistill.models.head_form import body_of, head_form, narrowed
from tdistill.models.language_model import inner_model
from tdistill.models.layout import Layout, padded_behind, separate
from tdistill.models.row_trials import (
    check_reading,
    forward_inputs,
    masks_rows,
    shares_prompts,
)
from tdistill.models.score_forms import DenseStepScores, LinearStepScores, StepScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MASKED = 8192  # most tokens of a row whose mask is made: 9 bytes a squared token, 600 MB

HeadMode = Literal["auto", "linear", "full"]


def linear_head(model: nn.Module, vocabulary_size: int) -> LinearHead | None:
    """The model's output layer as a :class:`LinearHead`, or None if the two give other logits.

    Made where gradients are off, it never gives any: not to a teacher that is read later, either.
    """
    lm, form = inner_model(model), head_form(model)
    if form is None:
        return None
    head: Any = lm.get_output_embeddings()
    weight, bias = head.weight, head.bias
    # A sparse gradient needs a dense one to join: that of the input embedding, if the two are one
    # parameter. A view (a flattened or sharded parameter) passes on dense gradients only.
    joined = weight is getattr(lm.get_input_embeddings(), "weight", None) and weight.is_leaf
    if not torch.is_grad_enabled():
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    elif not joined:
        weight = dense_gradient(weight)
    return LinearHead(weight, bias, form.scale, form.softcap, vocabulary_size, sparse_gradient=True)


def step_scores(
    model: nn.Module, layout: Layout, *, vocabulary_size: int, head: HeadMode = "auto"
) -> StepScores:
    """One forward pass, read at the steps of a layout.

    Under DDP or FSDP call this inside the wrapped module's forward.

    Args:
        model: the causal language model.
        layout: tokens and steps, on the model's device; a network that cannot read several
            sequences in a row gets separate rows (see :func:`shares_prompts`).
        vocabulary_size: outputs are cut to it.
        head: ``auto`` reads linear heads at chosen rows and others through full logits.

    Returns:
        The scores of the T steps.

    Raises:
        ModelError: for ``head="linear"`` on a head that is not linear, or a network that cannot be
            read in rows: see :func:`check_reading`.
        NonFiniteError: without gradients, where scores are no numbers.
    """
    lm = inner_model(model)
    check_reading(lm)
    linear = head != "full" and head_form(lm) is not None
    if head == "linear" and not linear:
        raise _not_linear(lm)
    network = body_of(lm) if linear else lm
    layout = _readable(lm, layout)
    row, position = layout.row, layout.position
    inputs = forward_inputs(lm, network, layout) | {"use_cache": False}
    if not linear:
        logits, hidden = _with_hidden(lm, inputs)
        logits = logits[row, position, :vocabulary_size].float()
        _check_numbers(lm, layout, lambda: has_numbers(logits))
        return DenseStepScores(logits, None if hidden is None else hidden[row, position])
    hidden = network(**inputs).last_hidden_state[row, position]
    _check_numbers(lm, layout, lambda: hidden.isfinite().all(-1))
    layer = linear_head(lm, vocabulary_size)  # after the body: FSDP gathers it with the last norm
    assert layer is not None, "its form is known"
    return LinearStepScores(layer, narrowed(hidden, layer.weight))


def _readable(lm: Any, layout: Layout) -> Layout:
    """The layout where the network can read it, else one of separate rows, padded behind."""
    if layout.sharing is not None:
        wide = layout.input_ids.shape[1] > _MASKED and masks_rows(lm)
        layout = separate(layout) if wide or not shares_prompts(lm) else layout
    return padded_behind(layout)


def _check_numbers(lm: Any, layout: Layout, sound: Callable[[], Tensor]) -> None:
    """Refuse steps that are read and no numbers; where there are gradients, the loss tells."""
    if torch.is_grad_enabled() or bool((good := sound()).all()):
        return
    if layout.sharing is not None:
        layout = separate(layout)
    step = int((~good).nonzero()[0])
    tokens = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(layout.input_ids, layout.attention_mask, strict=True)
    ]
    row, position = int(layout.row[step]), int(layout.position[step])
    padding = int((layout.attention_mask[row, : position + 1] == 0).sum())
    refuse_step(lm, tokens, row, position - padding)


def _with_hidden(lm: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Logits of a forward pass, and what the output layer read for them, if there is one."""
    head, read = lm.get_output_embeddings(), []
    if head is None:
        return lm(**inputs).logits, None
    hook = head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        return lm(**inputs).logits, read[-1] if read else None
    finally:
        hook.remove()


def check_head(model: nn.Module, *, vocabulary_size: int, head: HeadMode = "auto") -> None:
    """Try the output layer before any work; a model that needs full logits says so in a warning.

    Raises:
        ModelError: for ``head="linear"`` on a head that is not linear.
    """
    if head != "full" and linear_head(model, vocabulary_size) is None and head == "linear":
        raise _not_linear(inner_model(model))


def _not_linear(lm: PreTrainedModel) -> ModelError:
    return ModelError(
        f"{type(lm).__name__}: expected an output layer whose linear map gives the model's own "
        f"logits, found {type(lm.get_output_embeddings()).__name__} that does not; set "
        "training.head to auto or full"
    )
