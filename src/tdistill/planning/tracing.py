"""The memory of a pass, by running it on tensors without storage and counting what is alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdistill.models.head_form import body_of
from tdistill.planning.networks import Network, built
from tdistill.training.layer_pattern import shortened

_DEPTHS = (2, 4)  # layers that are traced; what more of them take follows on a line


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while they are alive.

    Args:
        known: tensors whose memory is not counted.

    Attributes:
        now: bytes alive.
        most: the most that were at once.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = weakref.WeakSet[Any](tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and look at what it made."""
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


@lru_cache(maxsize=64)
def update_bytes(
    network: Network, rows: int, length: int, *, bf16: bool = False, checkpointing: bool = False
) -> float:
    """Bytes alive at once between a forward and its backward pass, below the output layer.

    Beside weights, their gradients, and whatever the loss takes. One layer after the other adds the
    same, so few are traced; where a network cannot be traced (its paths depend on numbers) it is
    34 bytes a token, layer and unit of the hidden state in half precision, twice that in float32:
    Korthikanti et al. 2022, arXiv 2205.05198, equation 2, without the attention map, which fused
    kernels never make.

    Args:
        network: that is trained.
        rows: of a pass.
        length: tokens of a row.
        bf16: whether products are in bfloat16.
        checkpointing: whether layers are computed anew in the backward pass.
    """

    def trace(config: Any) -> float:
        model = built(config, "cpu").train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        held = [*model.parameters(), *(w.grad for w in model.parameters())]
        with Alive([t for t in held if t is not None]) as alive:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                states = _states(model, rows, length)
            (states.float() * states.float()).sum().backward()
        return float(alive.most)

    found = _by_depth(network, trace)
    if found is not None:
        return found
    return (34 if bf16 else 68) * rows * length * network.hidden * network.layers


@lru_cache(maxsize=64)
def reading_bytes(network: Network, rows: int, length: int, *, itemsize: float = 4.0) -> float:
    """Bytes alive at once in a pass without gradients, beside weights; see `update_bytes`.

    Where a network cannot be traced: ten states and all that is between two of them in a layer.
    """

    def trace(config: Any) -> float:
        dtype = torch.float32 if itemsize == 4.0 else torch.bfloat16
        model = built(config, "cpu", dtype).eval()
        with Alive(list(model.parameters())) as alive, torch.no_grad():
            _states(model, rows, length)
        return float(alive.most)

    found = _by_depth(network, trace)
    return found or 20 * rows * length * network.hidden * itemsize


def _states(model: Any, rows: int, length: int) -> Tensor:
    """Last states of rows of which some are padded, as a mask says."""
    ids = torch.zeros(rows, length, dtype=torch.long)
    return body_of(model)(input_ids=ids, use_cache=False).last_hidden_state


def _by_depth(network: Network, trace: Callable[[Any], float]) -> float | None:
    """What a trace finds for all layers, from a few of them; None where there is no trace."""
    try:
        with FakeTensorMode():
            if network.layers <= _DEPTHS[-1]:
                return trace(network.config)
            few, more = (trace(next(shortened(network.config, range(n)))) for n in _DEPTHS)
    except Exception:  # what cannot be done without numbers may raise anything
        return None
    each = (more - few) / (_DEPTHS[1] - _DEPTHS[0])
    return few + each * (network.layers - _DEPTHS[0])
