"""TF32 is allowed where it is asked for, on CUDA alone, and nowhere after."""

from __future__ import annotations

import pytest
import torch

from tdistill.models.precision import tf32_allowed


@pytest.mark.parametrize(
    ("allowed", "cuda", "within"),
    [(True, True, "high"), (False, True, "highest"), (True, False, "highest")],
)
def test_within_and_after(allowed: bool, cuda: bool, within: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(KeyError), tf32_allowed(allowed):
        assert torch.get_float32_matmul_precision() == within
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"
