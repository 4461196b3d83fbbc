"""Quantities over the whole vocabulary without a [T, V] tensor, forward or backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tdistill.models.head.linear import LinearHead

_LOST = (
    "expected a function of the logits and of constants, found one that passes a gradient to "
    "another tensor, where it would be lost; apply that part to the result"
)

PerStep = Callable[..., Tensor]
"""``(logits [c, V], *chunks of per-step tensors)`` to a tensor with first dimension c."""

Pullback = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(logits [c, V], result [c], gradient [c])`` to the logits' gradient; may write into logits."""


def map_logits(
    head: LinearHead,
    hidden: Float[Tensor, "T D"],
    function: PerStep,
    *per_step: Tensor,
    chunk_size: int = 128,
    pullback: Pullback | None = None,
    kept_mib: int = 0,
) -> Float[Tensor, "T ..."]:
    """``function(logits, *per_step)`` over chunks of steps; chunks are recomputed backward.

    The gradient of the weight is added up in place, in one buffer of its size.

    Args:
        head: the output layer.
        hidden: last hidden states of the steps.
        function: of the logits and of constants.
        per_step: constants with first dimension T.
        chunk_size: steps whose logits exist at once.
        pullback: the function's gradient, where it is known in closed form.
        kept_mib: logits of all steps that take no more are kept, not recomputed.

    Returns:
        The results, concatenated.

    Raises:
        ValueError: for a gradient through anything but the logits, which would be lost.

    Example:
        >>> head = LinearHead(torch.eye(3))
        >>> map_logits(head, torch.ones(4, 3), lambda z: z.sum(-1), chunk_size=3).tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in per_step):
        raise ValueError(_LOST)
    size = 4 * len(hidden) * head.size / 2**20  # logits are float32
    keep = torch.is_grad_enabled() and size <= kept_mib
    options = (head, function, pullback, chunk_size, torch.is_grad_enabled(), keep)
    return _MapLogits.apply(hidden, head.weight, head.bias, options, *per_step)


def log_normaliser(
    head: LinearHead, hidden: Float[Tensor, "T D"], *, chunk_size: int = 128, kept_mib: int = 0
) -> Float[Tensor, " T"]:
    """``log sum_V exp z(s, a)``, exact, without a [T, V] tensor.

    Args:
        head: the output layer.
        hidden: last hidden states of the steps.
        chunk_size: steps whose logits exist at once.
        kept_mib: logits of all steps that take no more are kept for the backward pass, which then
            computes none again.

    Returns:
        Log-normaliser per step, nats.

    Example:
        >>> head = LinearHead(torch.zeros(7, 2))
        >>> log_normaliser(head, torch.ones(3, 2)).exp().round().tolist()
        [7.0, 7.0, 7.0]
    """
    return map_logits(
        head,
        hidden,
        lambda z: z.logsumexp(-1),
        chunk_size=chunk_size,
        pullback=_softmax_pullback,
        kept_mib=kept_mib,
    )


def _softmax_pullback(logits: Tensor, result: Tensor, gradient: Tensor) -> Tensor:
    return logits.sub_(result[:, None]).exp_().mul_(gradient[:, None])


class _MapLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        options: tuple[LinearHead, PerStep, Pullback | None, int, bool, bool],
        *per_step: Tensor,
    ) -> Tensor:
        head, function, _, chunk_size, differentiable, keep = options
        ctx.options, ctx.dtype = options, _product_dtype(hidden)
        parts, ctx.kept = [], []
        with torch.autocast(hidden.device.type, enabled=False):
            layer = head.cut(weight, bias, ctx.dtype)
            for part, *rest in _chunks(chunk_size, hidden, *per_step):
                logits = layer.logits(part.to(ctx.dtype))
                if keep:
                    ctx.kept.append(logits)
                with torch.set_grad_enabled(differentiable):  # shows gradients that would be lost
                    parts.append(function(logits, *rest))
        if any(part.requires_grad for part in parts):
            raise ValueError(_LOST)
        result = torch.cat(parts)
        ctx.save_for_backward(hidden, weight, bias, result, *per_step)
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, result, *per_step = ctx.saved_tensors
        head, function, pullback, chunk_size, *_ = ctx.options
        kept, ctx.kept = iter(ctx.kept), []  # written over: a second pass computes them again
        inputs = (hidden, weight, bias)
        needed = zip(inputs, ctx.needs_input_grad, strict=False)
        into = [_accumulator(t) if t is not None and wanted else None for t, wanted in needed]
        with torch.autocast(hidden.device.type, enabled=False):
            layer = head.cut(weight, bias, ctx.dtype)
            start = 0
            for part, of_result, value, *rest in _chunks(
                chunk_size, hidden, gradient, result, *per_step
            ):
                known = next(kept, None)
                logits = layer.logits(part.to(ctx.dtype)) if known is None else known
                finish = layer.slope(logits)
                if pullback is not None:
                    of_logits = pullback(logits, value, of_result)
                else:
                    of_logits = _differentiate(function, logits, rest, of_result)
                plain = isinstance(finish, float) and finish == 1.0
                of_linear = of_logits if plain else of_logits * finish
                _add_gradients(into, start, of_linear, part.to(ctx.dtype), layer)
                start += len(part)
        found = (None if g is None else g.to(t.dtype) for g, t in zip(into, inputs, strict=True))
        return *found, None, *(None for _ in per_step)


def _chunks(chunk_size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(t.split(chunk_size) for t in tensors), strict=True)


def _differentiate(function: PerStep, logits: Tensor, rest: list[Tensor], slope: Tensor) -> Tensor:
    with torch.enable_grad():
        result = function(logits.requires_grad_(), *rest)
        return torch.autograd.grad(result, logits, slope, materialize_grads=True)[0]


def _add_gradients(
    into: list[Tensor | None], start: int, of_linear: Tensor, hidden: Tensor, layer: LinearHead
) -> None:
    """Add one chunk's gradients; in half precision products are rounded, their sums are not."""
    for_hidden, for_weight, for_bias = into
    size, slope = len(layer.weight), of_linear.to(hidden.dtype)
    if for_hidden is not None:
        for_hidden[start : start + len(hidden)] = slope @ layer.weight
    if for_weight is not None and for_weight.dtype == slope.dtype:
        for_weight[:size].addmm_(slope.T, hidden)
    elif for_weight is not None:
        for_weight[:size] += slope.T @ hidden
    if for_bias is not None:
        for_bias[:size] += of_linear.sum(0)


def _accumulator(of: Tensor) -> Tensor:
    half = of.dtype in (torch.float16, torch.bfloat16)
    return torch.zeros_like(of, dtype=torch.float32 if half else of.dtype)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """What a linear layer would multiply in here."""
    device = hidden.device.type
    cast = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
    return torch.get_autocast_dtype(device) if cast else hidden.dtype
