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


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_a_gpu
@pytest.mark.parametrize("width", [1, 100, 576, 896, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype, width: int):
    """Steps without members at both ends and between; D below, at and beyond a tile."""
    pytest.importorskip("triton")
    device = torch.device("cuda")
    hidden = torch.randn(64, width, device=device).to(dtype).requires_grad_()
    weight = torch.randn(1000, width, device=device).to(dtype).requires_grad_()
    step = torch.arange(1, 63, 2, device=device).repeat_interleave(21)
    ids = torch.randint(1000, (len(step),), device=device)
    found = []
    for products in (row_products(device), GATHERED):
        scores = set_scores(hidden, weight, ids, step, products=products)
        gradients = torch.autograd.grad(scores.sum(), (hidden, weight))
        found.append([scores.detach(), *(g.to_dense() for g in gradients)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-2, atol=1e-2)


@on_a_gpu
def test_rows_that_begin_beyond_31_bits_on_a_gpu():
    """Three rows of a table of more than 2^31 numbers, 2^30 numbers apart."""
    pytest.importorskip("triton")
    width, apart = 96, 2**30
    table = torch.empty(2 * apart + width, dtype=torch.bfloat16, device="cuda")
    weight = table.as_strided((3, width), (apart, 1))
    weight.normal_()
    hidden = torch.randn(4, width, device="cuda").bfloat16()
    step = torch.tensor([0, 1, 1, 3], device="cuda")
    ids = torch.tensor([2, 0, 1, 2], device="cuda")
    products = row_products(hidden.device)
    assert products is not None
    scores = set_scores(hidden, weight, ids, step, products=products)
    expected = (hidden[step].float() * weight[ids].float()).sum(1)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    offsets = torch.tensor([0, 1, 3, 3, 4], device="cuda")
    sums = products.weighted_sum(scores, ids, offsets, weight)
    plain = torch.zeros(4, width, device="cuda").index_add(
        0, step, scores[:, None] * weight[ids].float()
    )
    torch.testing.assert_close(sums, plain, rtol=1e-4, atol=1e-3)
