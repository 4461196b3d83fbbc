"""Fused kernels for devices that have them, behind the functions of :mod:`tdistill.core`."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from tdistill.core import RowProducts


def row_products(device: torch.device) -> RowProducts | None:
    """The fastest row products for a device; None leaves the choice to core.

    Args:
        device: where the tensors are.

    Example:
        >>> row_products(torch.device("cpu")) is None
        True
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from tdistill.kernels.rows import TRITON

    return TRITON
