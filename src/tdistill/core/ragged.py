"""Groups of tensors that move together, and rows of unequal length laid end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tdistill.core.segments import offsets_of, row_index

_Group = TypeVar("_Group", bound="TensorGroup")
_Rows = TypeVar("_Rows", bound="Ragged")


@dataclass(frozen=True, eq=False)
class TensorGroup:
    """Tensors that belong together.

    Subclasses are frozen dataclasses whose fields are tensors, other groups, None, or plain values,
    which stay on the host.
    """

    def map(self: _Group, function: Callable[[Tensor], Tensor]) -> _Group:
        """The same with a function applied to every tensor."""
        values = {f.name: _mapped(getattr(self, f.name), function) for f in fields(self)}
        return type(self)(**values)

    def to(self: _Group, device: torch.device | str) -> _Group:
        """The same on another device; what comes from the host is not waited for."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=tensor.device.type == "cpu"))

    def pin_memory(self: _Group) -> _Group:
        """The same in memory that copies fast to a CUDA device; data loaders call it."""
        return self.map(lambda tensor: tensor.pin_memory())

    def named_tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Every tensor by the path to it, such as ``sets.offsets``."""
        found: dict[str, Tensor] = {}
        for field in fields(self):
            value, name = getattr(self, field.name), prefix + field.name
            if isinstance(value, TensorGroup):
                found |= value.named_tensors(f"{name}.")
            elif isinstance(value, Tensor):
                found[name] = value
        return found


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, TensorGroup):
        return value.map(function)
    return function(value) if isinstance(value, Tensor) else value


class Ragged(TensorGroup):
    """T rows of unequal length as compressed rows.

    Subclasses are frozen dataclasses with a field ``offsets``, where row t is
    ``[offsets[t]:offsets[t + 1]]`` of every other field, flat tensors with a number a member.
    """

    offsets: Int[Tensor, " R"]

    def __len__(self) -> int:
        """Number of rows: the steps."""
        return self.offsets.numel() - 1

    @property
    def sizes(self) -> Int[Tensor, " T"]:
        """Members of each step."""
        return self.offsets.diff()

    @cached_property
    def step(self) -> Int[Tensor, " M"]:
        """The step of every member."""
        return row_index(self.offsets, self._members)

    @property
    def _members(self) -> int:
        """Members of all rows."""
        return next(len(getattr(self, f.name)) for f in fields(self) if f.name != "offsets")

    def keep(self: _Rows, marked: Bool[Tensor, " M"]) -> _Rows:
        """The same rows with the marked members only."""
        return self.pick(marked.nonzero().squeeze(1))

    def pick(self: _Rows, members: Int[Tensor, " S"]) -> _Rows:
        """The same rows with the named members only, which ascend."""
        offsets = torch.searchsorted(members, self.offsets)
        return self._with(offsets, lambda flat: flat[members])

    def take(self: _Rows, rows: Int[Tensor, " S"]) -> _Rows:
        """Chosen rows, in the order chosen."""
        sizes = self.sizes[rows]
        offsets = offsets_of(sizes)
        shift = torch.repeat_interleave(self.offsets[:-1][rows] - offsets[:-1], sizes)
        member = torch.arange(len(shift), device=shift.device) + shift
        return self._with(offsets, lambda flat: flat[member])

    @classmethod
    def concatenate(cls: type[_Rows], parts: Sequence[_Rows]) -> _Rows:
        """Rows laid end to end in the given order."""
        flat = {
            f.name: torch.cat([getattr(part, f.name) for part in parts])
            for f in fields(cls)
            if f.name != "offsets"
        }
        sizes = torch.cat([part.sizes for part in parts])
        return cls(**{**flat, "offsets": offsets_of(sizes)})

    def _with(self: _Rows, offsets: Tensor, members: Callable[[Tensor], Tensor]) -> _Rows:
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "offsets"}
        chosen = {name: members(tensor) for name, tensor in flat.items()}
        return type(self)(**{**chosen, "offsets": offsets})
