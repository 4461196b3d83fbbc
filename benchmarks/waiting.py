"""How often a device would be waited for, counted on a CPU: each look at numbers or their count.

On CUDA ``torch.cuda.set_sync_debug_mode`` says it; here nothing waits, so what would wait is
counted: scalars, lists and copies that are read on the host, shapes that depend on numbers (marks
as an index, ``nonzero``, ``unique``, ``bincount``, repeats of unknown length), numbers made on the
host for the device.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_SHAPES = {
    _ATEN._local_scalar_dense,
    _ATEN.is_nonzero,
    _ATEN.equal,
    _ATEN.nonzero,
    _ATEN.argwhere,
    _ATEN.masked_select,
    _ATEN.bincount,
    _ATEN._unique,
    _ATEN._unique2,
    _ATEN.unique_dim,
    _ATEN.unique_consecutive,
    _ATEN._coalesce,
}
_INDEXED = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_}
_READS: set[Any] = {Tensor.tolist, Tensor.cpu, Tensor.numpy}
_MADE = {torch.tensor, torch.as_tensor}


class Waits:
    """Counts where a device would be waited for.

    Attributes:
        places: how often, by the line of this project that asked, or by the operation.
    """

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self.paused = False

    @property
    def total(self) -> int:
        """All of them."""
        return self.places.total()

    def note(self, what: str) -> None:
        """One more, at the line that is being run."""
        if self.paused:
            return
        lines = [
            line for line in traceback.extract_stack() if "/tdistill/" in line.filename
        ] or traceback.extract_stack()[-4:-3]
        where = f"{lines[-1].filename.rpartition('/tdistill/')[2]}:{lines[-1].lineno}"
        self.places[f"{where} {what}"] += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens within counts once."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    @contextmanager
    def counting(self) -> Iterator[Waits]:
        """Count what is done within, the backward pass too."""
        with _Calls(self), _Operations(self):
            yield self


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        unknown = func is _ATEN.repeat_interleave.Tensor and kwargs.get("output_size") is None
        if unknown or packet in _SHAPES or (packet in _INDEXED and _by_marks(args[1])):
            self.waits.note(str(packet))
        return func(*args, **kwargs)


class _Calls(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func in _MADE and kwargs.get("device") is not None
        if not made and func not in _READS:
            return func(*args, **kwargs)
        self.waits.note(func.__name__)
        with self.waits.pause():
            return func(*args, **kwargs)


def _by_marks(indices: Any) -> bool:
    kinds = (torch.bool, torch.uint8)
    return any(isinstance(index, Tensor) and index.dtype in kinds for index in indices)
