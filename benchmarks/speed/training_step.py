"""Benchmark 1: one training step, against TRL's two trainers and DistillKit's loss."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from typing import Any

from benchmarks.speed.bars import Report
from benchmarks.speed.distillkit import BUDGET, setting_of
from benchmarks.speed.measure import MIB, Spread, paired, ratio, spread_of
from benchmarks.speed.protocol import Worker, WorkerError
from benchmarks.speed.settings import Setting

OURS = ("bellman_distill", "kd")
EXACT = "bellman_distill, vocabulary"


def run(setting: Setting) -> Report:
    """Speed and memory of every method, in two groups so that all fit into memory."""
    materials, report = setting.materials, Report()
    materials.make()
    given = {
        "teacher": str(materials.teacher),
        "student": str(materials.student),
        "rows": str(materials.rows_file),
    }
    own = {
        name: ("ours", {**given, "cache": str(materials.cache), "objective": name}, False)
        for name in (*OURS, EXACT)
    }
    # GKD needs most of 24 GiB, so only one of ours waits beside it.
    first = {"bellman_distill": own["bellman_distill"]}
    trainers = _group(setting, {**first, "gkd": ("gkd", given, True)}, setting.form.slow)
    others = {"on_policy": ("on_policy", given, True), **_distillkit(setting, given)}
    online = _group(setting, {**own, **others}, max(1, setting.form.slow - 1))
    making = _seconds_of_cache(setting)
    what = _words(setting)
    found = ratio(_rates(trainers, "bellman_distill"), _rates(trainers, "gkd"))
    report.add("training_step.against_gkd.bellman_distill", found, what)
    as_fast = ratio(_rates(online, "kd"), _rates(online, "bellman_distill"))
    by_way = Spread(*(getattr(as_fast, k) * getattr(found, k) for k in ("value", "low", "high")))
    text = f"{what}; its ratio to bellman_distill, paired, times that one's to GKD"
    report.add("training_step.against_gkd.kd", by_way, text)
    found = ratio(_rates(online, "bellman_distill"), _rates(online, "on_policy"))
    report.add("training_step.against_on_policy", found, f"{what}; its generation included")
    memory = {name: method["over_bare_bytes"] for name, method in trainers.items()}
    share = memory["bellman_distill"] / memory["gkd"]
    report.add("training_step.memory", Spread(share, share, share), f"{what}; peak in one process")
    report.details = {
        "methods": _table({**online, **trainers}),
        "cache": _payback(making, trainers),
        "parts": trainers["bellman_distill"]["parts"],
    }
    return report


def _group(setting: Setting, wanted: dict[str, Any], repetitions: int) -> dict[str, dict[str, Any]]:
    """Seconds, tokens and memory of methods that take turns; DistillKit's may be missing."""
    tokens: dict[str, list[float]] = {name: [] for name in wanted}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, (module, options, peer) in wanted.items():
            try:
                worker = setting.worker(module, options, label=name, peer=peer)
            except WorkerError as error:
                if name != "distillkit":
                    raise
                print(f"    left out: {error}", flush=True)
                continue
            workers[name] = stack.enter_context(worker)

        def step(name: str) -> float:
            seconds = workers[name].step()
            tokens[name].append(workers[name].last["tokens"])
            return seconds

        steps = {name: lambda name=name: step(name) for name in workers}
        seconds = paired(steps, repetitions, note="training step")
        return {
            name: {
                "seconds": seconds[name],
                "tokens": tokens[name][-repetitions:],
                "over_bare_bytes": worker.last["over_bare_bytes"],
                "bare_bytes": worker.ready["bare_bytes"],
                "parts": worker.last.get("parts"),
            }
            for name, worker in workers.items()
        }


def _distillkit(setting: Setting, given: dict[str, Any]) -> dict[str, Any]:
    """DistillKit's method on its own cache; empty, with a word why, where it does not run."""
    cache = setting.work / f"distillkit-{setting.materials.rows}x{setting.materials.tokens}.npz"
    packing = setting_of(BUDGET, vocabulary_of(setting))
    try:
        with setting.worker("distillkit_cache", given, peer=True) as worker:
            worker.ask({"setting": packing, "out": str(cache)})
    except WorkerError as error:
        print(f"    left out: {error}", flush=True)
        return {}
    options = {**given, "setting": packing, "cache": str(cache)}
    return {"distillkit": ("distillkit_step", options, True)}


def vocabulary_of(setting: Setting) -> int:
    """Rows of the teacher's output layer."""
    from tdistill.models.language_model import load_config

    return int(load_config(setting.materials.teacher).vocab_size)


def _seconds_of_cache(setting: Setting) -> float:
    """What it takes, once, to score and store the rows of a step."""
    from benchmarks.speed.materials import score

    from tdistill.models.language_model import load
    from tdistill.teacher.config import CaptureConfig
    from tdistill.teacher.source import LiveTeacher

    live = LiveTeacher(load(setting.materials.teacher), CaptureConfig())
    folder = setting.work / "cache-timed"
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    score(live, setting.materials.read_rows(), folder)
    return time.perf_counter() - start


def _payback(seconds: float, methods: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Making the cache against what each of its steps saves."""
    ours, gkd = (methods[name]["seconds"] for name in ("bellman_distill", "gkd"))
    saved = spread_of([b - a for a, b in zip(ours, gkd, strict=True)])
    return {"seconds": seconds, "saved_a_step": saved.value, "epochs": seconds / saved.value}


def _rates(methods: dict[str, dict[str, Any]], name: str) -> list[float]:
    method = methods[name]
    return [t / s for t, s in zip(method["tokens"], method["seconds"], strict=True)]


def _table(methods: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "method": name,
            "seconds": spread_of(method["seconds"]).json(),
            "tokens_per_second": spread_of(_rates(methods, name)).json(),
            "over_bare_mib": method["over_bare_bytes"] / MIB,
        }
        for name, method in methods.items()
    ]


def _words(setting: Setting) -> str:
    form, rows = setting.form, setting.materials.read_rows()
    trained = sum(len(row.response_ids) for row in rows)
    return (
        f"SmolLM2-135M-Instruct teacher, its 10-layer student, batch {form.batch} x {form.tokens} "
        f"tokens ({trained} of a response), float32, AdamW, {setting.threads} threads, "
        "no gradient checkpointing, whole updates of each trainer's own loop in turn; the losses "
        "are the trainers' defaults (GKD: JSD at beta 0.5, DistillationTrainer: reverse KL)"
    )
