"""The output layer read at chosen tokens: scores of set members without a [T, V] tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tdistill.models.head.row_products import RowProducts, dense_gradient, set_scores


@dataclass(frozen=True, eq=False)
class LinearHead:
    """``z = cap(scale (W h + b))``: every head that is a linear map up to an elementwise function.

    Attributes:
        weight: rows of the output layer, one per token.
        bias: per token, or None.
        scale: factor on the linear map (Cohere's logit_scale, 1 / Granite's logits_scaling).
        softcap: ``c tanh(x / c)`` after the scale (Gemma 2), or None.
        vocabulary_size: tokens that have a score; None means every row. Rows that only fill the
            matrix stay in ``weight``: a slice would pad its gradient to a second [V, D] buffer.
        sparse_gradient: the weight may get sparse gradients, because a dense one joins them.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    vocabulary_size: int | None = None
    sparse_gradient: bool = False

    @property
    def size(self) -> int:
        """Tokens that have a score."""
        return len(self.weight) if self.vocabulary_size is None else self.vocabulary_size

    def logits(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T V"]:
        """Scores of every token: the readable reference."""
        bias = None if self.bias is None else self.bias[: self.size]
        return self._finish(torch.nn.functional.linear(hidden, self.weight[: self.size], bias))

    def columns(self, hidden: Float[Tensor, "T D"], ids: Int[Tensor, " N"]) -> Float[Tensor, "T N"]:
        """Scores of the same tokens at every step: one product with their rows.

        Example:
            >>> LinearHead(torch.eye(3)).columns(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2]))
            tensor([[3.]])
        """
        rows = torch.nn.functional.embedding(ids, self._rows, sparse=True)
        bias = None if self.bias is None else self.bias[ids]
        return self._finish(torch.nn.functional.linear(hidden, rows, bias))

    def scores(
        self,
        hidden: Float[Tensor, "T D"],
        ids: Int[Tensor, " M"],
        step: Int[Tensor, " M"],
        *,
        products: RowProducts | None = None,
    ) -> Float[Tensor, " M"]:
        """Scores of chosen tokens: ``z(s_step[m], ids[m])`` for every member m.

        Args:
            hidden: last hidden states of the steps.
            ids: token of each member.
            step: step of each member, ascending.
            products: how rows are multiplied, see :func:`set_scores`.

        Returns:
            One score per member, nats, unnormalised.

        Raises:
            IndexError: for a token or a step that does not exist.

        Example:
            >>> head = LinearHead(torch.eye(3))
            >>> hidden, first_step = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0, 0])
            >>> head.scores(hidden, torch.tensor([2, 0]), first_step)
            tensor([3., 1.])
        """
        linear = set_scores(hidden, self._rows, ids, step, products=products)
        return self._finish(linear if self.bias is None else linear + self.bias[ids])

    def cut(
        self, weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"] | None, dtype: torch.dtype
    ) -> LinearHead:
        """This head with these parameters, cut to the vocabulary, in another precision."""
        weight = weight[: self.vocabulary_size].to(dtype)
        bias = None if bias is None else bias[: self.vocabulary_size].to(dtype)
        return LinearHead(weight, bias, self.scale, self.softcap)

    def slope(self, logits: Float[Tensor, "*rest"]) -> Float[Tensor, "*rest"] | float:
        """Derivative of a score with respect to ``W h + b``, from the score."""
        if self.softcap is None:
            return self.scale
        return self.scale * (1 - (logits / self.softcap).square())

    @property
    def _rows(self) -> Tensor:
        return self.weight if self.sparse_gradient else dense_gradient(self.weight)

    def _finish(self, linear: Tensor) -> Tensor:
        z = linear.float() if linear.dtype in (torch.float16, torch.bfloat16) else linear
        z = z if self.scale == 1.0 else z * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


def map_steps(
    function: Callable[..., Tensor], *per_step: Tensor, chunk_size: int
) -> Float[Tensor, "T ..."]:
    """A per-step function over chunks of steps, recomputed in the backward pass.

    Lets an exact full-vocabulary quantity be computed with a [chunk, V] tensor at most.

    Args:
        function: maps chunks of the tensors to a tensor with the same first dimension.
        per_step: tensors with first dimension T.
        chunk_size: steps a chunk.

    Returns:
        The results, concatenated.

    Example:
        >>> map_steps(lambda x: x.sum(-1), torch.ones(5, 3), chunk_size=2).tolist()
        [3.0, 3.0, 3.0, 3.0, 3.0]
    """
    chunks = zip(*(t.split(chunk_size) for t in per_step), strict=True)
    return torch.cat([_recompute(function, *chunk) for chunk in chunks])


def _recompute(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return function(*args)
    out = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(out, Tensor)
    return out
