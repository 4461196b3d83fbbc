"""Benchmark 3: the loss alone, from hidden states to both gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from benchmarks.speed.bars import Report
from benchmarks.speed.measure import Step, paired, ratio, spread_of, timed
from benchmarks.speed.settings import Setting

VOCABULARY, HIDDEN, STEPS, MEMBERS = 151_936, 896, 512, 8
CHUNK = 128


def run(setting: Setting) -> Report:
    """KL to the teacher on 8 ids a step, against KL over the vocabulary in three forms."""
    vocabulary = int(VOCABULARY * setting.form.vocabulary)
    shape = {"steps": STEPS, "hidden": HIDDEN, "vocabulary": vocabulary}
    methods: dict[str, Step] = {n: timed(f) for n, f in _losses(vocabulary, setting).items()}
    with setting.worker("chunked", shape, peer=True) as worker:
        methods["chunked, TRL's kernel"] = worker.step
        seconds = paired(methods, setting.form.slow, note="loss alone")
    report = Report()
    what = (
        f"V = {vocabulary}, D = {HIDDEN}, T = {STEPS}, {MEMBERS} ids a step, float32, "
        f"{setting.threads} threads, forward and backward into hidden states and output "
        "layer (row-sparse gradient of the layer where it is on the set)"
    )
    full = ratio(seconds["full"], seconds["set"])
    report.add("loss_alone.full", full, f"{what}; the teacher's log-probabilities are given")
    chunked = {n: ratio(s, seconds["set"]) for n, s in seconds.items() if n.startswith("chunked")}
    faster = min(chunked, key=lambda name: chunked[name].value)
    report.add("loss_alone.chunked", chunked[faster], f"{what}; the faster: {faster}")
    report.details = {"seconds": {n: spread_of(s).json() for n, s in seconds.items()}}
    return report


def _losses(vocabulary: int, setting: Setting) -> dict[str, Callable[[], Any]]:
    """Closures over one problem: forward KL from the teacher, mean over steps."""
    import torch
    from torch.nn.functional import linear
    from torch.utils.checkpoint import checkpoint

    from tdistill.core import project, set_forward_kl
    from tdistill.models.head import LinearHead
    from tdistill.models.score_forms import LinearStepScores

    torch.set_num_threads(setting.threads)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(STEPS, HIDDEN, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, HIDDEN, generator=generator).div_(HIDDEN**0.5)
    weight.requires_grad_()
    teacher = torch.randn(STEPS, vocabulary, generator=generator).log_softmax(-1)
    members, ids = teacher.topk(MEMBERS)
    offsets = torch.arange(0, STEPS * MEMBERS + 1, MEMBERS)
    step = torch.arange(STEPS).repeat_interleave(MEMBERS)

    def kl(h: Any, target: Any) -> Any:
        student = linear(h, weight).log_softmax(-1)
        return (target.exp() * (target - student)).sum(-1)

    def backward(loss: Any) -> None:
        hidden.grad = weight.grad = None
        loss.mean().backward()

    def on_set(head: LinearHead) -> None:
        scores = LinearStepScores(head, hidden).at(ids.flatten(), step)
        backward(set_forward_kl(members.flatten(), project(scores, offsets), offsets))

    def chunked() -> None:
        pairs = zip(hidden.split(CHUNK), teacher.split(CHUNK), strict=True)
        parts = [checkpoint(kl, h, t, use_reentrant=False) for h, t in pairs]
        backward(torch.cat(parts))  # type: ignore[arg-type]

    # Row-sparse where the version has it: what a tied layer gets, whose dense gradient is there.
    options = {field.name for field in fields(LinearHead)} & {"sparse_gradient"}
    return {
        "set": lambda: on_set(LinearHead(weight, **dict.fromkeys(options, True))),
        "set, dense gradient": lambda: on_set(LinearHead(weight)),
        "full": lambda: backward(kl(hidden, teacher)),
        f"chunked by {CHUNK} steps": chunked,
    }
