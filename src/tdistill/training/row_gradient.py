"""The gradient of an embedding, at the cost of the tokens that occur in a batch.

Left to itself, autograd makes a new [V, D] tensor for it in every backward pass, nearly all zeros,
and fresh memory costs more than the lookup. Here the gradient is sparse and is laid into one buffer
that stays; of it only the rows of the update before are set to zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class RowGradient:
    """Lays sparse gradients of an embedding's weight into a dense buffer.

    Args:
        embedding: the input embedding; its weight may be the output layer's, too.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        self.weight = embedding.weight
        self._buffer: Tensor | None = None
        self._touched: list[Tensor] = []  # rows of the buffer that are not zero

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Around a backward pass: the weight's dense gradient is what it would be without."""
        held, self.weight.grad = self.weight.grad, None
        yield
        found = self.weight.grad
        if found is None:
            self.weight.grad = held
        elif found.is_sparse:
            self.weight.grad = self._laid(found.coalesce(), held)
        elif held is not None:
            self.weight.grad = found.add_(held)

    def _laid(self, found: Tensor, held: Tensor | None) -> Tensor:
        rows, values = found.indices()[0], found.values()
        into = self._cleared() if held is None else held
        if into is self._buffer:
            self._touched.append(rows)
        return into.index_add_(0, rows, values)

    def _cleared(self) -> Tensor:
        if self._buffer is None or self._buffer.device != self.weight.device:
            self._buffer = torch.zeros_like(self.weight, memory_format=torch.contiguous_format)
        for rows in self._touched:
            self._buffer.index_fill_(0, rows, 0.0)
        self._touched = []
        return self._buffer


@contextmanager
def sparse_gradient(embedding: nn.Module | None) -> Iterator[RowGradient | None]:
    """Make an embedding's gradient sparse for a while; nothing where it is frozen or no lookup."""
    if not isinstance(embedding, nn.Embedding) or not embedding.weight.requires_grad:
        yield None
        return
    before, embedding.sparse = embedding.sparse, True
    try:
        yield RowGradient(embedding)
    finally:
        embedding.sparse = before
