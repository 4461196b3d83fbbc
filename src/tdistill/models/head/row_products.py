"""Scores of chosen tokens at chosen steps, at the cost of the chosen tokens.

Members lie as compressed rows, step after step. The value is one dot product a member, and both
gradients are sums of rows, grouped by step and by token. No tensor over members and hidden size
exists: on CPU the three are products with a sparse matrix in compressed rows. Per member that was
measured faster than one dense product with the union of the members of a chunk of steps, up to
steps that share all their tokens (docs/performance.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tdistill.core.segments import row_index

_HALF = (torch.float16, torch.bfloat16)
_MEMBER_CHUNK = 32_768


@dataclass(frozen=True)
class RowProducts:
    """The two products that scores of chosen tokens and their gradients are made of.

    Attributes:
        dot: ``(left [T, D], right [V, D], ids [M], offsets [T + 1])`` to the dot product of each
            member's two rows [M], in float32 or better.
        weighted_sum: ``(values [M], index [M], offsets [R + 1], rows [N, D])`` to the sum over each
            group's members of value times row [R, D], in float32 or better.
    """

    dot: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    weighted_sum: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def gathered_dot(
    left: Float[Tensor, "T D"],
    right: Float[Tensor, "V D"],
    ids: Int[Tensor, " M"],
    offsets: Int[Tensor, " R"],
) -> Float[Tensor, " M"]:
    """``left[t] . right[ids[m]]`` for each member m of step t: gather, multiply, sum.

    The readable reference; it runs on every device, by chunks of members.

    Example:
        >>> gathered_dot(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([1, 0]),
        ...     torch.tensor([0, 2]))
        tensor([2., 1.])
    """
    step = row_index(offsets, len(ids))
    chunks = zip(step.split(_MEMBER_CHUNK), ids.split(_MEMBER_CHUNK), strict=True)
    return torch.cat([(_wide(left[t]) * _wide(right[i])).sum(-1) for t, i in chunks])


def gathered_sum(
    values: Float[Tensor, " M"],
    index: Int[Tensor, " M"],
    offsets: Int[Tensor, " R"],
    rows: Float[Tensor, "N D"],
) -> Float[Tensor, "R-1 D"]:
    """``sum_m values[m] rows[index[m]]`` over the members m of each group: the readable reference.

    Example:
        >>> gathered_sum(torch.tensor([2.0, 3.0]), torch.tensor([0, 1]), torch.tensor([0, 2]),
        ...     torch.eye(2))
        tensor([[2., 3.]])
    """
    total = values.new_zeros(offsets.numel() - 1, rows.shape[1])
    groups = row_index(offsets, len(values))
    parts = (t.split(_MEMBER_CHUNK) for t in (groups, values, index))
    for group, value, i in zip(*parts, strict=True):
        total.index_add_(0, group, value[:, None] * rows[i].to(values.dtype))
    return total


def sparse_dot(
    left: Float[Tensor, "T D"],
    right: Float[Tensor, "V D"],
    ids: Int[Tensor, " M"],
    offsets: Int[Tensor, " R"],
) -> Float[Tensor, " M"]:
    """:func:`gathered_dot` as a dense product sampled at a sparse matrix's entries."""
    right, ids = _wide_rows(right, ids)
    left = left.to(right.dtype)
    empty = _compressed_rows(right.new_zeros(ids.numel()), ids, offsets, len(right))
    return torch.sparse.sampled_addmm(empty, left, right.T, beta=0.0).values()


def sparse_sum(
    values: Float[Tensor, " M"],
    index: Int[Tensor, " M"],
    offsets: Int[Tensor, " R"],
    rows: Float[Tensor, "N D"],
) -> Float[Tensor, "R-1 D"]:
    """:func:`gathered_sum` as a sparse matrix times a dense one."""
    rows, index = _wide_rows(rows, index)
    return _compressed_rows(values, index, offsets, len(rows)) @ rows.to(values.dtype)


GATHERED = RowProducts(gathered_dot, gathered_sum)
SPARSE = RowProducts(sparse_dot, sparse_sum)


def set_scores(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    ids: Int[Tensor, " M"],
    step: Int[Tensor, " M"],
    *,
    products: RowProducts | None = None,
) -> Float[Tensor, " M"]:
    """``z_m = h(s_step[m]) . W[ids[m]]`` with gradients that cost what the members cost.

    The gradient of the weight is sparse: the sums of the tokens that occur, in ascending order.
    Added to the dense gradient of a tied input embedding it needs no second [V, D] buffer; for a
    layer with no other gradient see :func:`dense_gradient`.

    Args:
        hidden: last hidden states of the steps.
        weight: rows of the output layer.
        ids: token of each member.
        step: step of each member, ascending.
        products: how rows are multiplied; None takes sparse matrices on CPU and else gathers.

    Returns:
        One product a member, in float32 or better.

    Raises:
        IndexError: for a token or a step that does not exist. On a device that is only given work,
            such as CUDA, the device itself stops: to look at the numbers here would be to wait.
        ValueError: for steps that do not ascend.

    Example:
        >>> hidden, step = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0, 0])
        >>> set_scores(hidden, torch.eye(3), torch.tensor([2, 0]), step)
        tensor([3., 1.])
    """
    _check_members(ids, step, tokens=len(weight), steps=len(hidden))
    products = products or (SPARSE if hidden.device.type == "cpu" else GATHERED)
    return _SetScores.apply(products, hidden, weight, ids, step)


def dense_gradient(weight: Tensor) -> Tensor:
    """The weight itself; sparse gradients that it gets become one dense gradient behind it.

    All sparse gradients of one backward pass are added up first, so one [V, D] buffer is made.
    Optimisers and gradient clipping need dense gradients.

    Example:
        >>> weight = torch.zeros(3, 2, requires_grad=True)
        >>> one = set_scores(torch.ones(1, 2), dense_gradient(weight), *torch.tensor([[2], [0]]))
        >>> one.sum().backward()
        >>> weight.grad
        tensor([[0., 0.],
                [0., 0.],
                [1., 1.]])
    """
    return _DenseGradient.apply(weight)


class _SetScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, products: RowProducts, hidden: Tensor, weight: Tensor, *members: Tensor
    ) -> Tensor:
        ids, step = members
        steps = torch.arange(len(hidden) + 1, device=step.device)
        offsets = torch.searchsorted(step, steps)
        ctx.save_for_backward(hidden, weight, ids, step, offsets)
        ctx.products = products
        return products.dot(hidden, weight, ids, offsets)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, ids, step, offsets = ctx.saved_tensors
        weighted_sum = ctx.products.weighted_sum
        for_hidden = for_weight = None
        if ctx.needs_input_grad[1]:
            for_hidden = weighted_sum(gradient, ids, offsets, weight).to(hidden.dtype)
        if ctx.needs_input_grad[2]:
            ascending, order = ids.sort(stable=True)
            tokens, counts = ascending.unique_consecutive(return_counts=True)
            rows = weighted_sum(gradient[order], step[order], _offsets(counts), hidden)
            for_weight = torch.sparse_coo_tensor(
                tokens[None],
                rows.to(weight.dtype),
                weight.shape,
                is_coalesced=True,
                check_invariants=False,
            )
        return None, for_hidden, for_weight, None, None


class _DenseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.data  # a view could not be read any more after an optimiser's step

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> Tensor:
        return gradient.to_dense() if gradient.is_sparse else gradient


def _check_members(ids: Tensor, step: Tensor, *, tokens: int, steps: int) -> None:
    """Sparse products and kernels read at any address that they are given."""
    if waits_for(ids):
        exist = (ids >= 0) & (ids < tokens) & (step >= 0) & (step < steps)
        sound = exist.all() & (step.diff() >= 0).all()
        torch._assert_async(sound, "expected tokens and steps that exist, and ascending steps")
        return
    for name, values, size in (("ids", ids, tokens), ("step", step, steps)):
        low, high = torch.stack(values.aminmax()).tolist() if len(values) else (0, -1)
        if low < 0 or high >= size:
            raise IndexError(f"{name}: expected at least 0 and below {size}, found {low} to {high}")
    if bool((step.diff() < 0).any()):
        raise ValueError("step: expected steps in ascending order, found some that descend")


def waits_for(tensor: Tensor) -> bool:
    """Whether reading numbers of a tensor waits for a device that is only given work."""
    return tensor.device.type != "cpu"


def _offsets(counts: Int[Tensor, " N"]) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in _HALF else values


def _wide_rows(rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in float32 or better; of a half-precision table only those that are used."""
    if rows.dtype not in _HALF:
        return rows, index
    used, place = index.unique(return_inverse=True)
    return rows[used].float(), place


def _compressed_rows(values: Tensor, index: Tensor, offsets: Tensor, width: int) -> Tensor:
    _silence_beta_warning()
    size = (offsets.numel() - 1, width)
    return torch.sparse_csr_tensor(offsets, index, values, size, check_invariants=False)


@cache
def _silence_beta_warning() -> None:
    """Torch says once a process that compressed rows are in beta; this is when."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zero = torch.zeros(1, dtype=torch.long)
        torch.sparse_csr_tensor(zero, zero[:0], torch.zeros(0), (0, 0), check_invariants=False)
