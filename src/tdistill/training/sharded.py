"""Weights in shards (FSDP2, DeepSpeed ZeRO): read whole, and put back into a model as it was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from tdistill.errors import ModelError
from tdistill.models.language_model import inner_model
from tdistill.processes import is_first_process


def is_sharded(trainer: Trainer) -> bool:
    """Whether no process has all weights of the student while it trains."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def whole(weight: Tensor) -> Tensor:
    """A weight of all processes together; a collective operation where it is in shards."""
    from torch.distributed.tensor import DTensor

    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def expose_head(trainer: Trainer) -> None:
    """Let ZeRO-3 gather the output layer, whose rows are read outside its forward, with the model.

    FSDP2 gathers it with the last norm, and keeps it until the backward pass.
    """
    if not _shares_weights(trainer):
        return
    from deepspeed.runtime.zero import register_external_parameter  # pyright: ignore

    head: Any = inner_model(trainer.model).get_output_embeddings()
    for weight in head.parameters(recurse=False):
        register_external_parameter(trainer.model, weight)


def _shares_weights(trainer: Trainer) -> bool:
    """Whether ZeRO-3 has the weights in shards."""
    plugin: Any = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3


def whole_models_again() -> None:
    """Let the models that are loaded next be whole.

    Transformers shares models out as they are made while the settings of ZeRO-3 are in memory,
    which is longer than the training that they are of.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def without_weights(model: nn.Module) -> Any:
    """A copy whose parameters have no storage, ties and buffers as they are.

    Example:
        >>> copied = without_weights(nn.Linear(2, 3))
        >>> copied.weight.device.type, tuple(copied.weight.shape)
        ('meta', (3, 2))
    """
    empty = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, dict(empty))


def with_weights_of(empty: Any, trainer: Trainer) -> Any:
    """The copy with the weights that were trained, whole and on the CPU, in the first process.

    All processes call it; the copies of the others stay empty.

    Args:
        empty: what :func:`without_weights` made of the model before it was trained.
        trainer: after training.

    Raises:
        ModelError: if some weight is not among the shards.
    """
    if _shares_weights(trainer):
        state = _gathered(trainer.accelerator.unwrap_model(trainer.model_wrapped))
    else:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not is_first_process():
        return empty
    found = empty.load_state_dict(state, strict=False, assign=True)
    empty.tie_weights()
    unfilled = [name for name, weight in empty.named_parameters() if weight.is_meta]
    if unfilled or found.unexpected_keys:
        raise ModelError(
            f"expected every weight of the student from its shards, found {len(unfilled)} missing "
            f"and {len(found.unexpected_keys)} too many (first: "
            f"{[*unfilled, *found.unexpected_keys][0]})"
        )
    return empty


def _gathered(model: nn.Module) -> dict[str, Tensor]:
    """All weights of a model that ZeRO-3 shares out, one after the other; empty but in the first.

    DeepSpeed's own way needs stage3_gather_16bit_weights_on_model_save to be set at the start.
    """
    from deepspeed.runtime.zero import GatheredParameters  # pyright: ignore

    state = {}
    for name, weight in model.named_parameters():
        with GatheredParameters([weight]):
            if is_first_process():
                state[name] = weight.detach().to("cpu", copy=True)
    return state
