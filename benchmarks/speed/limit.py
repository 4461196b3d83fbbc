"""Benchmark 6: how far a training step is from its blocks, and these from a bare matmul."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.speed.bars import Report
from benchmarks.speed.measure import paired, ratio, spread_of, timed
from benchmarks.speed.settings import Setting

OPTIMISER = "optimiser"


def run(setting: Setting) -> Report:
    """The step of benchmark 1 in turn with forward and backward of its blocks on the same rows."""
    import torch

    torch.set_num_threads(setting.threads)
    materials = setting.materials
    materials.make()
    blocks, products, work = _bare(setting)
    options = {
        "student": str(materials.student),
        "rows": str(materials.rows_file),
        "cache": str(materials.cache),
        "objective": "bellman_distill",
    }
    parts: list[dict[str, float]] = []
    with setting.worker("ours", options) as worker:

        def step() -> float:
            seconds = worker.step()
            parts.append({**worker.last["parts"], "whole": seconds})
            return seconds

        methods = {"step": step, "blocks": timed(blocks), "matmul": timed(products)}
        seconds = paired(methods, setting.form.repetitions, note="limit")
    parts = parts[-setting.form.repetitions :]
    without = [part["whole"] - part[OPTIMISER] for part in parts]
    report = Report()
    what = (
        f"bellman_distill on the set, batch {setting.form.batch} x {setting.form.tokens}, "
        f"{setting.threads} threads: forward and backward of the 10 blocks from embeddings to last "
        "hidden states, over the step without AdamW (collating, cache, loss, diagnostics and "
        "clipping are in the step)"
    )
    report.add("limit.blocks", ratio(seconds["blocks"], without), what)
    report.details = {
        "gigaflops": [
            {"what": name, "GFLOP/s": spread_of([work / s / 1e9 for s in times]).json()}
            for name, times in {**seconds, "step without optimiser": without}.items()
        ],
        "profile": _profile(parts),
    }
    return report


def _profile(parts: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Median seconds of each part of the step and its share; the rest is the Trainer's loop."""
    names = [name for name in parts[0] if name != "whole"]
    medians = {name: spread_of([part.get(name, 0.0) for part in parts]).value for name in names}
    whole = spread_of([part["whole"] for part in parts]).value
    medians["the rest of the loop"] = max(whole - sum(medians.values()), 0.0)
    ordered = sorted(medians.items(), key=lambda item: -item[1])
    return [{"part": n, "seconds": s, "share": s / whole} for n, s in ordered]


def _bare(setting: Setting) -> tuple[Callable[[], None], Callable[[], None], float]:
    """The student's blocks, their matrix products alone, and the operations of these."""
    import torch

    from tdistill.models.language_model import load

    materials = setting.materials
    model: Any = load(materials.student).model.base_model.train()
    rows = [(*row.prompt_ids, *row.response_ids[:-1]) for row in materials.read_rows()]
    embeddings = model.get_input_embeddings()(torch.tensor(rows)).detach().requires_grad_()
    cotangent = torch.randn_like(embeddings)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    shapes = [(m.in_features, m.out_features) for m in layers]
    tokens = len(rows) * len(rows[0])
    ends = {n for shape in shapes for n in shape}
    inputs = {n: torch.randn(tokens, n) for n in ends}
    weights = {shape: torch.randn(shape) for shape in shapes}

    def blocks() -> None:
        model.zero_grad()
        embeddings.grad = None
        hidden = model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        hidden.backward(cotangent)

    def products() -> None:
        for wide, narrow in shapes:
            weight = weights[wide, narrow]
            inputs[wide] @ weight  # forward
            inputs[narrow] @ weight.T  # backward into the input
            inputs[wide].T @ inputs[narrow]  # backward into the weight

    return blocks, products, float(sum(6 * tokens * a * b for a, b in shapes))
