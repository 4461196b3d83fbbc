"""Output layers of every form, and what a function of their scores gives back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdistill.models.head import LinearHead

STEPS, WIDTH, ROWS = 11, 6, 40
HEADS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"scale": 0.0625},
    {"softcap": 2.0},
    {"bias": True, "scale": 3.0, "softcap": 1.5},
    {"bias": True, "softcap": 2.0, "vocabulary_size": 33},  # 7 rows fill the matrix
]


def make_head(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> LinearHead:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    return LinearHead(
        weight.to(dtype).requires_grad_(),
        bias.to(dtype).requires_grad_() if options.get("bias") else None,
        **{name: value for name, value in options.items() if name != "bias"},
    )


def gradients(out: Tensor, head: LinearHead, hidden: Tensor) -> list[Tensor]:
    inputs = [hidden, head.weight] + ([] if head.bias is None else [head.bias])
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return list(torch.autograd.grad((out * weight).sum(), inputs))


def assert_same(
    found: Tensor, expected: Tensor, head: LinearHead, hidden: Tensor, *, tolerance: float = 1e-12
) -> None:
    limits = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(found, expected, **limits)
    pairs = zip(gradients(found, head, hidden), gradients(expected, head, hidden), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, **limits)


class Allocations(TorchDispatchMode):
    """Remembers the sizes of all dense tensors that operations made; not of views or writes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if all(result.alias_info is None for result in func._schema.returns):
            made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self.sizes += [leaf.numel() for leaf in made if leaf.layout == torch.strided]
        return out

    @property
    def largest(self) -> int:
        return max(self.sizes)
