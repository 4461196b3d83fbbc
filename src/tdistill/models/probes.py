"""Trials on tiny inputs: whether a network does what a fast way of reading it relies on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tdistill.models.language_model import inner_model

_Verdict = TypeVar("_Verdict")

FAILURES = (LookupError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError)
"""What a network raises that cannot be read some way."""

_BLOCKS = re.compile("chunk|compress|block_size|window|floor_scale")
_LONGEST_BLOCK = 256
# Blocks that masks and caches count by position, whatever their length.
_BY_POSITION = ("sliding_window", "attention_chunk_size")
_ROUNDING = 1e-5  # of the largest logit, float32: that of another order of summing
_LOW_ROUNDING = 2.0**-7  # likewise of bfloat16 and float16


def remembered(trial: Callable[[Any], _Verdict]) -> Callable[[nn.Module], _Verdict]:
    """Try a network once; later calls, through wrappers or not, give the verdict of the first."""
    verdicts: WeakKeyDictionary[nn.Module, _Verdict] = WeakKeyDictionary()

    @wraps(trial)
    def verdict(model: nn.Module) -> _Verdict:
        network = inner_model(model)
        if network not in verdicts:
            verdicts[network] = trial(network)
        return verdicts[network]

    return verdict


@contextmanager
def on_trial(network: nn.Module) -> Iterator[None]:
    """No gradients, no dropout and no mixed precision; every module's mode is as it was after."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    device = next(network.parameters()).device.type
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def probe_tokens(network: Any, count: int, *, skip: int = 0) -> tuple[int, ...]:
    """Ordinary tokens, spread over the vocabulary, the same at every call.

    Args:
        network: the model; its special tokens are left out, since some networks treat them apart.
        count: how many.
        skip: how many to leave out at the start.
    """
    config = network.config.get_text_config()
    rows = int(network.get_input_embeddings().weight.shape[0])
    special = {v for name in vars(config) if name.endswith("token_id") for v in _ids(config, name)}
    ordinary = [token for token in range(rows) if token not in special] or list(range(rows))
    return tuple(ordinary[(11 + 37 * i) % len(ordinary)] for i in range(skip, skip + count))


def _ids(config: Any, name: str) -> list[int]:
    value = getattr(config, name)
    return [value] if isinstance(value, int) else list(value or [])


def block_length(network: Any) -> int:
    """The longest block of tokens that a network treats together, of those short enough to try.

    What goes wrong between blocks, of attention or of a recurrence, is not seen in shorter rows.
    """
    return max((size for _, size in _blocks(network) if size <= _LONGEST_BLOCK), default=0)


def has_untried_blocks(network: Any) -> bool:
    """Whether there are longer ones, of which only the network knows by what it counts them."""
    return any(
        size > _LONGEST_BLOCK and name not in _BY_POSITION for name, size in _blocks(network)
    )


def _blocks(network: Any) -> Iterator[tuple[str, int]]:
    """Name and length of each kind of block that the configuration names."""
    for name, value in vars(network.config.get_text_config()).items():
        if _BLOCKS.search(name):
            yield from ((name, size) for size in _numbers_in(value) if size > 0)


def _numbers_in(value: Any) -> list[int]:
    if isinstance(value, dict):
        value = list(value.values())
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if type(item) is int]


def disagreement(
    found: Float[Tensor, "T V"],
    expected: Float[Tensor, "T V"],
    dtype: torch.dtype,
    *,
    same_pass: bool = False,
) -> str | None:
    """By how much logits differ, where it is more than rounding can explain; else None.

    In float32 every logit counts, against 1e-3 of the spread of its step: a head of small logits is
    held to small errors. In lower precisions, TF32 among them, it is the difference of a whole step
    that counts, since networks that route tokens amplify rounding at some of them.

    Args:
        found: logits read the fast way, nats.
        expected: the network's own.
        dtype: that the network computes in.
        same_pass: both come from the same hidden states, so that only the head rounds.
    """
    ours, own = found.float(), expected.float()
    hidden = own == -torch.inf  # tokens that the network rules out
    if bool((hidden != (ours == -torch.inf)).any()):
        return "other tokens are ruled out"
    ours, own = ours.masked_fill(hidden, 0.0), own.masked_fill(hidden, 0.0)
    spread, largest = own.std(-1, correction=0), own.abs().amax(-1)
    error = (ours - own).abs()
    size = error.amax(-1)
    if dtype == torch.float64 or (dtype == torch.float32 and not _reduced_products()):
        allowed = 1e-3 * spread + _ROUNDING * largest
    elif same_pass:
        allowed = 0.02 * spread + _LOW_ROUNDING * largest
    else:
        size, allowed = error.square().mean(-1).sqrt(), 0.15 * spread + _LOW_ROUNDING * largest
    return None if bool((size <= allowed).all()) else f"by up to {float(error.max()):.2g} nats"


def _reduced_products() -> bool:
    """Whether products of float32 matrices are computed in less: TF32 or bfloat16."""
    forced = os.environ.get("NVIDIA_TF32_OVERRIDE") == "1"
    return forced or torch.get_float32_matmul_precision() != "highest"
