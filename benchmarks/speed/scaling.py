"""Benchmark 2: the step against the vocabulary, the rows, and the responses that share a prompt."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields
from typing import Any

from benchmarks.speed.bars import Report
from benchmarks.speed.measure import MIB, paired, ratio, spread_of
from benchmarks.speed.settings import Setting

VOCABULARIES = (32_768, 65_536, 131_072, 262_144)
TOKENS = (64, 128, 256)
SHARING = 8  # responses a prompt, of the bar
PROMPT, RESPONSE = 128, 64
OPTIMISER = ("optimiser", "clipping")
"""Parts whose work is per parameter, whatever the loss."""

Times = dict[str, dict[str, Any]]


def run(setting: Setting) -> Report:
    """Random weights and random sets, the student's 10 layers and width."""
    setting.materials.make()
    report = Report()
    _against_vocabulary(setting, report)
    _against_tokens(setting, report)
    _against_responses(setting, report)
    return report


def _against_vocabulary(setting: Setting, report: Report) -> None:
    sizes = [int(v * setting.form.vocabulary) for v in VOCABULARIES]
    rows = {"rows": 8, "prompt": 64, "response": 64, "n": 1}
    wanted = {str(v): {"vocabulary": v, "random_rows": rows} for v in sizes}
    found = _times(setting, wanted, setting.form.repetitions)
    least, most = str(sizes[0]), str(sizes[-1])
    growth = ratio(found[most]["without"], found[least]["without"])
    less = type(growth)(growth.value - 1, growth.low - 1, growth.high - 1)
    what = (
        f"bellman_distill on the set, V from {least} to {most}, D = 576, 10 layers, random weights "
        "and sets (median 4, mean about 20), 8 rows x 128 tokens, 512 of responses; whole step "
        "less AdamW and gradient clipping"
    )
    report.add("scaling.vocabulary", less, what)
    report.details["vocabulary"] = [_line("vocabulary", int(v), found[v]) for v in wanted]


def _against_tokens(setting: Setting, report: Report) -> None:
    half = {t: {"rows": 8, "prompt": t // 2, "response": t // 2, "n": 1} for t in TOKENS}
    found = _times(
        setting, {str(t): {"random_rows": shape} for t, shape in half.items()}, setting.form.slow
    )
    report.details["tokens"] = [_line("tokens", 8 * t, found[str(t)]) for t in TOKENS]


def _against_responses(setting: Setting, report: Report) -> None:
    from tdistill.training.config import TrainConfig

    can_share = "share_prefix" in {field.name for field in fields(TrainConfig)}
    lines = []
    for n in setting.form.responses:
        shape = {"rows": max(8, n), "prompt": PROMPT, "response": RESPONSE, "n": n}
        wanted: Times = {"separate": {"random_rows": shape}}
        if can_share:
            wanted["shared"] = {"random_rows": shape, "training": {"share_prefix": True}}
        found = _times(setting, wanted, setting.form.slow)
        line = {"n": n, "separate_rows": spread_of(found["separate"]["without"]).json()}
        if can_share:
            line["shared_prefix"] = spread_of(found["shared"]["without"]).json()
            gain = ratio(found["separate"]["without"], found["shared"]["without"])
            line["gain"] = gain.json()
            if n == SHARING:
                what = (
                    f"{n} responses a prompt, prompt {PROMPT}, response {RESPONSE}, one prompt a "
                    "step, the 10-layer student, whole step less AdamW and gradient clipping"
                )
                report.add("scaling.prefix_sharing", gain, what)
        lines.append(line)
    if not can_share:
        report.leave_out("scaling.prefix_sharing", "not run: TrainConfig has no share_prefix")
    report.details["responses"] = lines


def _times(setting: Setting, wanted: Times, repetitions: int) -> Times:
    """Whole seconds, seconds without the optimiser, and memory of workers that take turns."""
    common = {"student": str(setting.materials.student), "objective": "bellman_distill"}
    without: dict[str, list[float]] = {name: [] for name in wanted}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                setting.worker("ours", common | options, label=f"ours-{name}")
            )
            for name, options in wanted.items()
        }

        def step(name: str) -> float:
            seconds = workers[name].step()
            parts = workers[name].last["parts"]
            without[name].append(seconds - sum(parts.get(part, 0.0) for part in OPTIMISER))
            return seconds

        steps = {name: lambda name=name: step(name) for name in workers}
        seconds = paired(steps, repetitions, warm_up=2, note="scaling")
        return {
            name: {
                "seconds": seconds[name],
                "without": without[name][-repetitions:],
                "over_bare_mib": worker.last["over_bare_bytes"] / MIB,
            }
            for name, worker in workers.items()
        }


def _line(name: str, size: int, times: dict[str, Any]) -> dict[str, Any]:
    return {
        name: size,
        "seconds": spread_of(times["seconds"]).json(),
        "without_optimiser": spread_of(times["without"]).json(),
        "over_bare_mib": times["over_bare_mib"],
    }
