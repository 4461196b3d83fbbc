"""The row products that suit a device: fused kernels where there are some."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from tdistill.models.head import RowProducts


def row_products(device: torch.device) -> RowProducts | None:
    """The fastest row products for a device; None leaves the choice to the reference ones.

    Args:
        device: where the tensors are.

    Example:
        >>> row_products(torch.device("cpu")) is None
        True
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from tdistill.models.head.triton_rows import TRITON

    return TRITON
