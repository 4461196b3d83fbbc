"""Products of float32 matrices in TF32, where somebody allows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Within, CUDA may round the factors of float32 products to 11 bits; it is as before after.

    Products take a fraction of the time then, and logits move by hundredths of a nat with the shape
    of their batch. Bfloat16 and float16 are as they are.

    Args:
        allowed: whether to; without CUDA nothing changes either way.
    """
    if not (allowed and torch.cuda.is_available()):
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
