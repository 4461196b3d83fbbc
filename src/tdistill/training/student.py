"""Students made from a teacher by keeping some of its layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from tdistill.errors import ModelError
from tdistill.models.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evenly_spaced(layers: int, keep: int) -> tuple[int, ...]:
    """Which of ``layers`` to keep: evenly spaced, first and last among them.

    Example:
        >>> evenly_spaced(30, 4)
        (0, 10, 19, 29)
        >>> evenly_spaced(5, 1)
        (0,)

    Raises:
        ModelError: for fewer than one layer, or more than there are.
    """
    if not 1 <= keep <= layers:
        raise ModelError(f"layers: expected from 1 to the teacher's {layers}, found {keep}")
    if keep == 1:
        return (0,)
    return tuple(round(i * (layers - 1) / (keep - 1)) for i in range(keep))


def drop_layers(teacher: LanguageModel, keep: Sequence[int]) -> LanguageModel:
    """A model of the same architecture and weights with only the kept decoder layers.

    It must be healed by training; how much depends on the layers (see `layer_choice`).

    Args:
        teacher: the model to take layers from; not changed.
        keep: indices of the layers, ascending.

    Returns:
        The student, in evaluation mode, with the teacher's tokenizer.

    Raises:
        ModelError: for layers that do not exist, or a model without one stack of layers.
    """
    config = copy.deepcopy(teacher.model.config)
    depth = config.num_hidden_layers
    if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < depth:
        raise ModelError(
            f"layers: expected ascending indices in [0, {depth}), the {depth} layers of "
            f"{teacher.name}, found {list(keep)}"
        )
    stack, _ = layer_stack(teacher.model)
    config.num_hidden_layers = len(keep)
    for name, value in vars(config).items():  # layer_types, no_rope_layers, mlp_layer_types
        if "layer" in name and isinstance(value, list) and len(value) == depth:
            setattr(config, name, [value[i] for i in keep])
    build: Any = type(teacher.model)
    student = build(config).to(dtype=teacher.model.dtype)
    new_index = {old: new for new, old in enumerate(keep)}
    weights = {}
    for name, weight in teacher.model.state_dict().items():
        match = re.match(rf"{re.escape(stack)}\.(\d+)\.(.*)", name)
        if match is None:
            weights[name] = weight
        elif int(match[1]) in new_index:
            weights[f"{stack}.{new_index[int(match[1])]}.{match[2]}"] = weight
    student.load_state_dict(weights)
    student.tie_weights()
    student.generation_config = copy.deepcopy(teacher.model.generation_config)
    student = student.to(teacher.device).eval()
    return LanguageModel(student, teacher.tokenizer, f"{teacher.name} with {len(keep)} layers")


def layer_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the modules of a model's decoder layers.

    Raises:
        ModelError: for a model without exactly one list of as many modules as it has layers.
    """
    depth = model.config.num_hidden_layers
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(stacks) != 1:
        raise ModelError(
            f"{type(model).__name__}: expected one stack of {depth} layers, found "
            f"{[name for name, _ in stacks]}; start from a smaller checkpoint of the same "
            "tokenizer instead"
        )
    return stacks[0]
