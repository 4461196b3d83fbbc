"""What only a GPU can show, in one command and one JSON: ``make gpu``, or

    python -m benchmarks.gpu --out gpu.json            # under ten minutes on CUDA
    python -m benchmarks.gpu --short                   # whether it works; what a CPU does

Nothing is downloaded: models have random weights and the sizes of SmolLM2-135M and its 10-layer
student. Each part that fails says so in the JSON and the others go on; the exit status is 1 then.
TRL's GKD is beside ours where ``trl`` is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu_models import write_models
from benchmarks.gpu_setting import LONG, SHORT, Setting, machine
from benchmarks.gpu_work import rollouts, steps, tests, waits
from benchmarks.speed.protocol import ROOT
from torch import Tensor


def core(setting: Setting) -> dict[str, Any]:
    """Pure functions on the device against the same on the CPU: sets exactly, sums to rounding."""
    from tdistill.core import project, segment_cumsum, segment_logsumexp, top_p_sets, truncate

    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(64, setting.sizes.vocabulary, generator=generator)
    log_probs = logits.log_softmax(-1)
    differences, forms = {}, {"sets": 0, "values": 0}
    for top_p, cap in ((0.9, None), (0.99, 256), (0.5, 8)):
        own, theirs = (
            top_p_sets(t, top_p, max_size=cap) for t in (log_probs.to(setting.device), log_probs)
        )
        for ours, other in ((own, theirs), (truncate(own, 0.4), truncate(theirs, 0.4))):
            _same(ours.ids, other.ids, f"ids at {top_p}")
            _same(ours.offsets, other.offsets, f"offsets at {top_p}")
            forms["sets"] += 1
        scores = own.log_probs.sin()
        for function in (segment_logsumexp, segment_cumsum, project):
            here = function(scores, own.offsets).cpu()
            there = function(scores.cpu(), theirs.offsets)
            name = function.__name__
            off = float((here - there).abs().max())
            differences[name] = max(off, differences.get(name, 0.0))
            forms["values"] += 1
    if max(differences.values()) > 1e-4:
        raise RuntimeError(f"expected sums that agree to 1e-4, found {differences}")
    return {"compared": forms, "largest_difference": differences}


def _same(ours: Tensor, theirs: Tensor, what: str) -> None:
    if not torch.equal(ours.cpu(), theirs):
        raise RuntimeError(f"{what}: expected what the CPU gives, found something else")


def losses(setting: Setting) -> dict[str, Any]:
    """The loss alone, forward and backward: on sets by each product, and over the vocabulary."""
    from tdistill.core import project, set_forward_kl
    from tdistill.models.head import GATHERED, LinearHead, log_normaliser
    from tdistill.models.head.devices import row_products

    sizes, found = setting.sizes, {}
    for dtype in (torch.float32, torch.bfloat16) if setting.queues else (torch.float32,):
        hidden, weight, sets = sizes.problem(setting.device, dtype)
        head = LinearHead(weight, sparse_gradient=True)

        def on_set(products: Any, hidden: Any = hidden, head: Any = head, sets: Any = sets) -> None:
            hidden.grad = head.weight.grad = None
            scores = head.scores(hidden, sets.ids, sets.step, products=products)
            policy = project(scores, sets.offsets)
            set_forward_kl(sets.log_probs, policy, sets.offsets).mean().backward()

        def exact(hidden: Any = hidden, head: Any = head) -> None:
            hidden.grad = head.weight.grad = None
            log_normaliser(head, hidden, chunk_size=1024).mean().backward()

        def dense(hidden: Any = hidden, head: Any = head, sets: Any = sets) -> None:
            hidden.grad = head.weight.grad = None
            student = head.logits(hidden).log_softmax(-1)
            student[sets.step, sets.ids].mean().backward()

        forms: dict[str, Callable[[], object]] = {
            "on the set, kernels as tuned": lambda f=on_set: f(row_products(setting.device)),
            "on the set, gathered": lambda f=on_set: f(GATHERED),
            "exact normaliser, by chunks": exact,
            "dense, full logits": dense,
        }
        for tile, products in _tiles(setting):
            forms[f"on the set, {tile}"] = lambda f=on_set, products=products: f(products)
        name = str(dtype).removeprefix("torch.")
        found[name] = setting.compare(forms, f"loss alone, {name}")
    return found


def _tiles(setting: Setting) -> Iterator[tuple[str, Any]]:
    """Kernels with programs of other sizes."""
    if not setting.queues:
        return
    from tdistill.models.head.triton_rows import TILES, triton_products

    for tile in TILES:
        name = f"tile {tile.members} x {tile.width}, {tile.warps} warps"
        yield name, triton_products(tile)


def accuracy(setting: Setting) -> dict[str, Any]:
    """Errors against float64 of scores and normalisers: float32, TF32 where there is, bfloat16."""
    from tdistill.models.head import GATHERED, LinearHead, log_normaliser
    from tdistill.models.head.devices import row_products

    found = {}
    precisions = {"float32": (torch.float32, "highest"), "bfloat16": (torch.bfloat16, "highest")}
    if setting.queues:
        precisions["tf32"] = (torch.float32, "high")
    before = torch.get_float32_matmul_precision()
    for name, (dtype, precision) in precisions.items():
        hidden, weight, sets = setting.sizes.problem(setting.device, dtype)
        exact = LinearHead(weight.detach().double())
        true = exact.scores(hidden.detach().double(), sets.ids, sets.step)
        total = log_normaliser(exact, hidden.detach().double())
        head = LinearHead(weight, sparse_gradient=True)
        torch.set_float32_matmul_precision(precision)
        try:
            forms = {"kernels": row_products(setting.device), "gathered": GATHERED}
            errors = {
                f"scores, {form}": head.scores(hidden, sets.ids, sets.step, products=p) - true
                for form, p in forms.items()
            }
            errors["log-normaliser"] = log_normaliser(head, hidden) - total
        finally:
            torch.set_float32_matmul_precision(before)
        found[name] = {n: float(e.detach().abs().max()) for n, e in errors.items()}
        allowed = 1.05 * found[name]["scores, gathered"] + 1e-6
        if found[name]["scores, kernels"] > allowed:
            raise RuntimeError(f"expected kernels as exact as gathered products, found {found}")
    return {"largest_error_nats": found}


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    part.__name__: part for part in (core, accuracy, losses, waits, rollouts, steps, tests)
}


def main(words: list[str] | None = None) -> int:
    """Measure all parts and write them."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "")[:60])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--short", action="store_true", help="tiny sizes, no tests")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / ".work-gpu")
    options = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    short = options.short or device.type == "cpu"
    setting = Setting(device, SHORT if short else LONG, options.work, not short)
    write_models(setting.work, setting.sizes)
    found: dict[str, Any] = {"machine": machine(setting), "short": short, "parts": {}}
    start = time.monotonic()
    for name in options.only:
        print(f"{name}:", flush=True)
        try:
            found["parts"][name] = PARTS[name](setting)
        except Exception as error:  # the others are measured all the same
            traceback.print_exc()
            found["parts"][name] = {"failed": str(error)}
        found["seconds"] = time.monotonic() - start
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    failed = [name for name, part in found["parts"].items() if "failed" in part]
    print(f"{options.out}: {len(options.only) - len(failed)} of {len(options.only)} parts")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
