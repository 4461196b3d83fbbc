"""The Triton kernels, in Triton's interpreter where there is no GPU, and on one where there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdistill.models.head import GATHERED, set_scores
from tdistill.models.head.devices import row_products

SCRIPT = Path(__file__).parent / "interpreted.py"


def test_value_and_gradients_are_those_of_the_reference_in_the_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "equal\n", done.stderr


def test_a_device_without_kernels_leaves_the_choice_to_core(monkeypatch: pytest.MonkeyPatch):
    assert row_products(torch.device("cpu")) is None
    monkeypatch.setattr("tdistill.models.head.devices.find_spec", lambda name: None)
    assert row_products(torch.device("cuda")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype):
    pytest.importorskip("triton")
    device = torch.device("cuda")
    hidden = torch.randn(64, 576, device=device).to(dtype).requires_grad_()
    weight = torch.randn(1000, 576, device=device).to(dtype).requires_grad_()
    step = torch.arange(64, device=device).repeat_interleave(21)
    ids = torch.randint(1000, (len(step),), device=device)
    found = []
    for products in (row_products(device), GATHERED):
        scores = set_scores(hidden, weight, ids, step, products=products)
        gradients = torch.autograd.grad(scores.sum(), (hidden, weight))
        found.append([scores.detach(), *(g.to_dense() for g in gradients)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-2, atol=1e-2)
