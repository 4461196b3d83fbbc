"""The configuration of a model with fewer layers, each of the kind that it was.

Kinds of layers (dense or sparse, full or sliding attention, with or without rotary positions,
attention or recurrence) follow from the index of a layer by lists, counts and periods, which every
architecture names its own way. What is written here are ways to say the pattern of the layers that
are kept; whether the layers come out as they were is checked on the network (see `student`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from tempfile import TemporaryDirectory
from typing import Any

Edit = Callable[[Any], None]

_NAMES = ("layer", "type", "pattern", "block", "idxs", "indices", "intermediate_size", "heads")
_COUNTS_FROM_START = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers")
_PERIODS = (
    ("attn_layer_period", "attn_layer_offset"),
    ("expert_layer_period", "expert_layer_offset"),
)


def shortened(config: Any, keep: Sequence[int]) -> Iterator[Any]:
    """Configurations that may stand for the kept layers, the likeliest first.

    Each is as it will be when it has been saved and loaded.

    Args:
        config: of the whole model; not changed.
        keep: indices of the layers, ascending.
    """
    for edits in product(*_choices(config, keep)):
        made = copy.deepcopy(config)
        text = made.get_text_config()
        depth, count = text.num_hidden_layers, len(keep)
        text.num_hidden_layers = count
        if getattr(text, "num_blocks", None) == depth:  # xLSTM has both
            text.num_blocks = count
        for edit in edits:
            edit(text)
        yield _reloaded(made)


def _reloaded(config: Any) -> Any:
    """The configuration after a round trip through ``config.json``."""
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        again = type(config).from_pretrained(folder)
    again._attn_implementation = config._attn_implementation
    return again


def _choices(config: Any, keep: Sequence[int]) -> list[list[Edit]]:
    """For each part of a pattern, the ways to write it."""
    config = config.get_text_config()
    depth = config.num_hidden_layers
    choices: list[list[Edit]] = []
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and any(part in name for part in _NAMES):
            ways = _shorter_lists(value, depth, keep)
            if ways:
                choices.append([_set(name, way) for way in ways])
    choices += [edits for edits in (_counts(config, keep), _sparse_steps(config, keep)) if edits]
    choices += _periods(config, keep)
    if hasattr(config, "moe_layer_start_index"):
        choices.append(_ranges(config, keep))
    if hasattr(config, "scale_depth"):  # each layer's share is scale_depth / sqrt(layers)
        scale = config.scale_depth * math.sqrt(len(keep) / depth)
        choices.append([_set("scale_depth", scale)])
    if getattr(config, "attention_types", None):  # GPT-Neo: [[kinds, times], ...]
        kinds = [[[config.attention_layers[old]], 1] for old in keep]
        choices.append([_set("attention_types", kinds)])
    if getattr(config, "block_types", None):  # RecurrentGemma: repeated along the layers
        period = len(config.block_types)
        choices.append([_set("block_types", [config.block_types[old % period] for old in keep])])
    return choices


def _set(*names_and_values: Any) -> Edit:
    def edit(config: Any) -> None:
        for name, value in zip(names_and_values[::2], names_and_values[1::2], strict=True):
            setattr(config, name, value)

    return edit


def _shorter_lists(value: Sequence[Any], depth: int, keep: Sequence[int]) -> list[list[Any]]:
    """A list with an entry for each layer, or of indices of layers; some could be either."""
    ways = []
    if len(value) == depth:
        ways.append([value[old] for old in keep])
    indices = all(type(i) is int and 0 <= i < depth for i in value) and len(set(value)) == len(
        value
    )
    if value and indices:
        ways.append([new for new, old in enumerate(keep) if old in value])
    return ways


def _counts(config: Any, keep: Sequence[int]) -> list[Edit]:
    """So many layers at the start are of a kind."""
    found = [name for name in _COUNTS_FROM_START if isinstance(getattr(config, name, None), int)]
    parts = [
        part for name in found for part in (name, sum(i < getattr(config, name) for i in keep))
    ]
    return [_set(*parts)] if parts else []


def _sparse_steps(config: Any, keep: Sequence[int]) -> list[Edit]:
    """Qwen-MoE: every n-th layer is sparse, but for those in a list; the list can say it all."""
    step = getattr(config, "decoder_sparse_step", None)
    if step is None:
        return []
    listed = config.mlp_only_layers or []
    dense = [new for new, i in enumerate(keep) if i in listed or (i + 1) % step]
    return [_set("decoder_sparse_step", 1, "mlp_only_layers", dense)]


def _periods(config: Any, keep: Sequence[int]) -> list[list[Edit]]:
    """Jamba: of each period, the layer at an offset is of a kind."""
    choices = []
    for period, offset in _PERIODS:
        if not hasattr(config, period):
            continue
        every, at = getattr(config, period), getattr(config, offset)
        wanted = [old % every == at for old in keep]
        pairs = [
            (p, o)
            for p in range(1, len(keep) + 2)
            for o in range(p)
            if [new % p == o for new in range(len(keep))] == wanted
        ]
        choices.append([_set(period, p, offset, o) for p, o in pairs[:1]])
    return choices


def _ranges(config: Any, keep: Sequence[int]) -> list[Edit]:
    """Ernie: every n-th layer from a start to an end is sparse."""

    def sparse(i: int, every: int, start: int, end: int) -> bool:
        return (i + 1) % every == 0 and start <= i <= end

    names = "moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index"
    every, start, end = (getattr(config, name) for name in names)
    last = config.num_hidden_layers - 1 if end == -1 else end
    wanted, count = [sparse(old, every, start, last) for old in keep], len(keep)
    for n, a, b in product(range(1, count + 2), range(count + 1), range(count)):
        if [sparse(new, n, a, b) for new in range(count)] == wanted:
            return [_set(names[0], n, names[1], a, names[2], b)]
    return []
