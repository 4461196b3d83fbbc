"""Parts of ``benchmarks.gpu`` that train, sample or test: whole pieces of work."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmarks.gpu_models import language_model
from benchmarks.gpu_setting import Setting
from benchmarks.speed.measure import MIB, Spread, paired, spread_of
from benchmarks.speed.protocol import ROOT, Worker
from benchmarks.waiting import Waits

TESTS = (
    "tests/models/test_triton_rows.py",
    "tests/models/test_row_products.py",
    "tests/models/test_scores.py",
    "tests/models/test_layout.py",
    "tests/models/test_generation.py",
    "tests/core",
    "tests/training/test_trainer.py",
    "tests/training/test_critic.py",
    "tests/teacher/test_rollouts.py",
)


def tests(setting: Setting) -> dict[str, Any]:
    """Kernel, core and training tests; what they load goes to the device by itself."""
    if not setting.tests:
        return {"run": False}
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *TESTS]
    start = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode:
        raise RuntimeError("\n".join(lines[-40:]))
    return {"run": True, "seconds": time.monotonic() - start, "summary": lines[-1:]}


def waits(setting: Setting) -> dict[str, Any]:
    """How often a micro-batch of training waits for the device, and where."""
    from benchmarks.speed.workers.ours import RandomTeacher, rows_of

    from tdistill.models.language_model import LanguageModel
    from tdistill.training import trainer
    from tdistill.training.config import TrainConfig
    from tdistill.training.objectives import BellmanDistill
    from tdistill.training.train import train_student

    sizes, found = setting.sizes, list[dict[str, Any]]()
    student: LanguageModel = language_model(setting.work, "student", setting.device)
    step = trainer.DistillTrainer.training_step

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _counting(setting) as places:
            result = step(self, *args, **kwargs)
        found.append({"waits": places.total(), "places": dict(places)})
        return result

    trainer.DistillTrainer.training_step = counted  # pyright: ignore
    try:
        with tempfile.TemporaryDirectory() as folder:
            train_student(
                student,
                BellmanDistill(),
                rows_of({"random_rows": sizes.shape(n=1)}, sizes.vocabulary),
                TrainConfig(steps=3, batch_size=sizes.rows, bf16=setting.queues),
                checkpoints=Path(folder),
                vocabulary_size=sizes.vocabulary,
                source=RandomTeacher(sizes.vocabulary, largest=min(512, sizes.vocabulary // 8)),
            )
    finally:
        trainer.DistillTrainer.training_step = step
    return found[-1]


@contextmanager
def _counting(setting: Setting) -> Iterator[Counter[str]]:
    """Waits by place: what CUDA itself warns of, or what would wait, counted on a CPU."""
    places: Counter[str] = Counter()
    if not setting.queues:
        counter = Waits()
        as_there = "tdistill.models.head.row_products.waits_for"
        with mock.patch(as_there, lambda tensor: True), counter.counting():
            yield places
        places.update(counter.places)
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    texts = [w for w in seen if "synchronizing CUDA" in str(w.message)]
    places.update(f"{w.filename.rpartition('site-packages/')[2]}:{w.lineno}" for w in texts)


def steps(setting: Setting) -> dict[str, Any]:
    """Whole updates: set-only and full losses, shared prompts, bfloat16, and GKD where it is."""
    sizes = setting.sizes
    given = {"student": str(setting.work / "student"), "random_rows": sizes.shape(n=1)}
    half = {"training": {"bf16": True}}
    shared = {"random_rows": sizes.shape(n=4), "training": {"share_prefix": True}}
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        name: ("ours", {**given, "objective": name})
        for name in ("bellman_distill", "bellman_distill, sampled", "bellman_distill, vocabulary")
    }
    wanted["kd"] = ("ours", {**given, "objective": "kd"})
    kd = {**given, "objective": "kd"}
    wanted["kd, 4 responses a prompt"] = ("ours", {**kd, "random_rows": sizes.shape(n=4)})
    wanted["kd, 4 responses a prompt, shared"] = ("ours", {**kd, **shared})
    if setting.queues:
        wanted["kd, bf16"] = ("ours", {**kd, **half})
    if importlib.util.find_spec("trl") is not None:
        models = {name: str(setting.work / name) for name in ("teacher", "student")}
        wanted["gkd, TRL"] = ("gkd", models | {"rows": str(setting.work / "rows.json")})
    return _times(setting, wanted)


def _times(setting: Setting, wanted: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Seconds an update, response tokens a second and memory, of processes that take turns."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker(
                    f"benchmarks.speed.workers.{module}",
                    options,
                    log=setting.work / "logs" / f"{name.replace(' ', '-')}.log",
                    threads=int(os.environ.get("OMP_NUM_THREADS", "2")),
                )
            )
            for name, (module, options) in wanted.items()
        }
        forms = {name: worker.step for name, worker in workers.items()}
        seconds = paired(forms, setting.sizes.repetitions, warm_up=2, note="update")
        return {
            name: {
                "seconds": spread_of(seconds[name]).json(),
                "tokens_per_second": worker.last["tokens"] / spread_of(seconds[name]).value,
                "over_bare_mib": worker.last["over_bare_bytes"] / MIB,
            }
            for name, worker in workers.items()
        }


def rollouts(setting: Setting) -> dict[str, Any]:
    """Tokens a second of sampling with capture, without, and of ``generate``."""
    from benchmarks.speed.rollouts import Plan, methods_of

    sizes = setting.sizes
    teacher = language_model(setting.work, "teacher", setting.device)
    if setting.queues:  # what a teacher is sampled in there
        teacher = replace(teacher, model=teacher.model.to(torch.bfloat16))
    plan = Plan(sizes.prompts(), 4, sizes.tokens)
    made: dict[str, list[int]] = {}
    methods = methods_of(teacher, plan, setting.work)

    def step(name: str) -> Callable[[], float]:
        own = made.setdefault(name, [])
        return setting.timed(lambda: own.append(methods[name](len(own))))

    forms = {name: step(name) for name in methods}
    seconds = paired(forms, sizes.repetitions, note="rollouts")
    rates: dict[str, Spread] = {
        name: spread_of([t / s for t, s in zip(made[name][-len(times) :], times, strict=True)])
        for name, times in seconds.items()
    }
    return {"tokens_per_second": {name: rate.json() for name, rate in rates.items()}}
