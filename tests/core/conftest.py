"""Ragged rows that every operation over sets is tried on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(7)


@pytest.fixture
def offsets() -> Tensor:
    """Rows of 3, 1, 7, 1, 2 and 40 members."""
    return torch.tensor([0, 3, 4, 11, 12, 14, 54])
