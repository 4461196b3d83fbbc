"""What a configuration says of a network: built without weights, and counted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from tdistill.models.language_model import load_config
from tdistill.models.weights import WeightsConfig
from tdistill.planning.devices import Device
from tdistill.recipe import Recipe
from tdistill.training.bypass import layer_stack
from tdistill.training.layer_pattern import shortened
from tdistill.training.student import evenly_spaced

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_QUANTISED = {"8bit": 1.0, "4bit": 0.53}  # with the scales of blocks of 64: bitsandbytes, NF4
_ASKED = 4  # tokens that a cache is filled with


@dataclass(frozen=True, eq=False)
class Network:
    """A causal language model in numbers.

    Attributes:
        config: of transformers.
        parameters: in all, tied ones once.
        sizes: of them, in each of the layers.
        sides: rows and columns of the matrices of each layer, added up.
        head: of the output layer, tied or not.
        hidden: size of a state.
        vocabulary: rows of the output layer.
        dtype: of the checkpoint.
    """

    config: Any
    parameters: int
    sizes: tuple[int, ...]
    sides: tuple[int, ...]
    head: int
    hidden: int
    vocabulary: int
    dtype: str

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.sizes)

    @property
    def in_layers(self) -> int:
        """Parameters of all layers."""
        return sum(self.sizes)

    @property
    def tables(self) -> int:
        """Parameters outside the layers."""
        return self.parameters - self.in_layers

    @cached_property
    def state(self) -> int:
        """Elements of keys and values, or of other memory, that a token adds to a cache."""
        return _state(self.config)

    def itemsize(self, weights: WeightsConfig, device: Device) -> float:
        """Bytes of a number that is computed with, loaded in this way."""
        loaded = "float32" if device.is_cpu else self.dtype
        return _BYTES.get(loaded if weights.dtype == "auto" else weights.dtype, 4.0)

    def weight_bytes(self, weights: WeightsConfig, device: Device) -> float:
        """Bytes of the weights, loaded in this way; what is quantised is the layers."""
        plain = self.itemsize(weights, device)
        layers = plain if weights.quantise is None else _QUANTISED[weights.quantise]
        return self.tables * plain + self.in_layers * layers


def network_of(config: Any) -> Network:
    """The network of a configuration; no weight is read or made.

    Raises:
        ModelError: it is not one stack of layers.
    """
    model = built(config, "meta")
    _, stack = layer_stack(model)
    head: Any = getattr(model.get_output_embeddings(), "weight", None)
    text = config.get_text_config()
    return Network(
        config=config,
        parameters=sum(w.numel() for w in model.parameters()),
        sizes=tuple(sum(w.numel() for w in layer.parameters()) for layer in stack),
        sides=tuple(map(_sides, stack)),
        head=text.vocab_size * text.hidden_size if head is None else head.numel(),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size if head is None else len(head),
        dtype=str(config.dtype or "float32").removeprefix("torch."),
    )


def built(config: Any, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """The network of a configuration, its weights on a device that may hold none."""
    from transformers import AutoModelForCausalLM

    with torch.device(device):  # a copy: the precision asked for is written into the configuration
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, trust_remote_code=False
        )


def _sides(layer: torch.nn.Module) -> int:
    linear = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    return sum(m.in_features + m.out_features for m in linear)


def networks_of(recipe: Recipe) -> tuple[Network, Network]:
    """Teacher and student of a recipe whose paths are placed.

    Raises:
        ModelError: there is no such model, or it has not so many layers.
    """
    teacher = network_of(load_config(recipe.teacher.path, gguf_file=recipe.teacher.gguf_file))
    if recipe.student.path is not None:
        return teacher, network_of(load_config(recipe.student.path))
    assert recipe.student.layers is not None
    return teacher, shorter(teacher, evenly_spaced(teacher.layers, recipe.student.layers))


def shorter(network: Network, keep: Sequence[int]) -> Network:
    """The network with some of its layers, counted without building it.

    Args:
        network: whole.
        keep: indices of the layers, ascending.
    """
    sizes = tuple(network.sizes[i] for i in keep)
    return replace(
        network,
        config=next(shortened(network.config, keep)),
        parameters=network.tables + sum(sizes),
        sizes=sizes,
        sides=tuple(network.sides[i] for i in keep),
    )


def _state(config: Any) -> int:
    """Elements that a cache holds for a token, by asking two of the network's layers."""
    text = config.get_text_config()
    depth = min(2, text.num_hidden_layers)
    try:
        model = built(next(shortened(config, range(depth))), "meta")
        ids = torch.zeros(1, _ASKED, dtype=torch.long, device="meta")
        made = model(input_ids=ids, use_cache=True)
        cache: Any = getattr(made, "cache", None) or made.past_key_values
        held = sum(t.numel() for layer in cache.layers for t in (layer.keys, layer.values))
    except Exception:  # memory of another kind, or paths that depend on numbers
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return int(2 * text.num_hidden_layers * heads * size)
    return held * text.num_hidden_layers // (depth * _ASKED)
