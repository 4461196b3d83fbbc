"""What counts as rounding where a fast way of reading a network is tried."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tdistill.models.probes import disagreement

TF32 = 2.0**-11  # relative rounding of a factor


@pytest.fixture
def logits(generator: torch.Generator) -> Tensor:
    return 3 * torch.randn(6, 500, generator=generator)


@pytest.fixture(params=["precision", "environment"])
def reduced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products of float32 in TF32: asked of torch, or forced on the library below it."""
    if request.param == "environment":
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def rounded(logits: Tensor) -> Tensor:
    """As another shape of batch gives them in TF32 after some layers: .04 nats apart were seen."""
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    return logits + 20 * TF32 * noise


def test_in_whole_float32_it_is_a_disagreement(logits: Tensor):
    assert disagreement(rounded(logits), logits, torch.float32) is not None


@pytest.mark.usefixtures("reduced")
def test_in_tf32_it_is_rounding_and_a_wrong_head_is_still_seen(logits: Tensor):
    assert disagreement(rounded(logits), logits, torch.float32) is None
    assert disagreement(0.8 * logits, logits, torch.float32) is not None
    assert disagreement(rounded(logits), logits, torch.float64) is not None
