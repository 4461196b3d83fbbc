"""Whether a network that was loaded is what its checkpoint holds, and holds numbers alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tdistill.errors import ModelError, excerpt

_NUMBERED = re.compile(r"(?P<stack>.+?)\.(?P<number>\d+)\.(?P<name>.+)")


def check_loaded(model: Any, loading: Mapping[str, Collection[str]], path: str) -> None:
    """Refuse a checkpoint that lacks weights, or has some that the network would not use.

    Weights outside of the layers are left alone: heads of other tasks, towers of other senses. So
    are buffers of other releases, and the layers after the last that predict several tokens.

    Args:
        model: as loaded.
        loading: ``missing_keys`` and ``unexpected_keys``, as transformers gives them.
        path: of the checkpoint, for messages.

    Raises:
        ModelError: with the number of weights and the first of them.
    """
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{path}: expected every weight of the model, found {len(missing)} missing (first: "
            f"{excerpt(missing[0])}), which would be random; take a complete checkpoint of a "
            "causal model"
        )
    stacks = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    more = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    unused = {key: _NUMBERED.fullmatch(key) for key in sorted(loading["unexpected_keys"])}
    inside = [(key, m) for key, m in unused.items() if m is not None and m["stack"] in stacks]
    for key, found in inside:
        count, number = len(stacks[found["stack"]]), int(found["number"])
        if number >= count + more:
            raise ModelError(
                f"{path}: expected weights of the {count} layers that config.json says, found some "
                f"of layer {number} ({excerpt(key)}), which would be left out; correct the number "
                "of layers in config.json, or take the whole checkpoint"
            )
    left_out = [key for key, m in inside if int(m["number"]) < len(stacks[m["stack"]])]
    left_out = [key for key in left_out if _is_trained(model, key)]
    if left_out:
        raise ModelError(
            f"{path}: expected weights that {type(model).__name__} with this config.json has, "
            f"found {len(left_out)} in its layers that it has not (first: {excerpt(left_out[0])}), "
            "which would be left out; correct config.json (its model_type, or fields such as "
            "attention_bias), or take the whole checkpoint"
        )


def _is_trained(model: nn.Module, key: str) -> bool:
    """Whether a name is that of a weight or its bias; masks and the like are named otherwise."""
    place, _, name = key.rpartition(".")
    if name != "bias":
        return name == "weight"
    return hasattr(dict(model.named_modules()).get(place), "weight")


def check_numbers(model: nn.Module, path: str) -> None:
    """Refuse weights that are NaN or infinite, of which some row may never be read in a trial.

    A pass over the weights: a tenth of what loading them takes, or less.

    Args:
        model: as loaded.
        path: of the checkpoint, for messages.

    Raises:
        ModelError: with the name of the tensor and the first row.
    """
    for name, weight in model.named_parameters():
        if not _is_finite(weight.detach()):
            bad = ~weight.detach().isfinite()
            first = int(bad.flatten(1).any(1).nonzero()[0]) if bad.dim() > 1 else 0
            row = f" in row {first} of {len(bad)}" if bad.dim() > 1 else ""
            raise ModelError(
                f"{path}: expected weights that are numbers, found NaN or infinity in "
                f"{excerpt(name)}{row}, {int(bad.sum())} of {bad.numel()} numbers; take a sound "
                "checkpoint"
            )


def _is_finite(weight: Tensor) -> bool:
    if not weight.is_floating_point() or weight.is_meta or weight.numel() == 0:
        return True  # the codes of a quantiser; what is kept on a disk
    whole = weight.sum(dtype=torch.float32)  # the fastest pass; finite numbers may overflow
    return bool(whole.isfinite()) or bool(weight.isfinite().all())
