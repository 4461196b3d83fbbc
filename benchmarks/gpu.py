"""What only a GPU can show, in one command and one JSON: ``make gpu``, or

    python -m benchmarks.gpu --out gpu.json            # under ten minutes on CUDA
    python -m benchmarks.gpu --short                   # whether it works; what a CPU does

Nothing is downloaded: models have random weights and the sizes of SmolLM2-135M and its 10-layer
student. Each part that fails says so in the JSON and the others go on; the exit status is 1 then.
TRL's GKD is beside ours where ``trl`` is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmarks.gpu_models import Sizes, language_model, write_models
from benchmarks.speed.measure import MIB, Spread, paired, spread_of
from benchmarks.speed.protocol import ROOT, Worker
from benchmarks.waiting import Waits
from torch import Tensor

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
LONG = Sizes(576, 30, 10, 49_152, rows=32, prompt=128, response=128, tokens=64, repetitions=7)
SHORT = Sizes(48, 3, 2, 512, rows=4, prompt=12, response=8, tokens=6, repetitions=1)


@dataclass(frozen=True)
class Setting:
    """Where and how much is measured.

    Attributes:
        device: of all of it.
        sizes: of models and rows.
        work: folder for models and logs.
        tests: whether the tests are run.
    """

    device: torch.device
    sizes: Sizes
    work: Path
    tests: bool

    @property
    def queues(self) -> bool:
        """Whether the device is only given work, and must be waited for to be timed."""
        return self.device.type == "cuda"

    def timed(self, work: Callable[[], object]) -> Callable[[], float]:
        """A step that is the whole of a function, on the device too."""

        def step() -> float:
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            return time.perf_counter() - start

        return step

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.queues:
            torch.cuda.synchronize(self.device)

    def compare(self, forms: dict[str, Callable[[], object]], note: str) -> dict[str, Any]:
        """Seconds of forms that take turns, and the most memory of each over what was there."""
        steps = {name: self.timed(work) for name, work in forms.items()}
        seconds = paired(steps, self.sizes.repetitions, warm_up=2, note=note)
        return {
            name: {"seconds": spread_of(seconds[name]).json(), **self._memory(work)}
            for name, work in forms.items()
        }

    def _memory(self, work: Callable[[], object]) -> dict[str, float]:
        if not self.queues:
            return {}
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        return {"peak_mib": (torch.cuda.max_memory_allocated(self.device) - before) / MIB}


def machine(setting: Setting) -> dict[str, Any]:
    """What was measured on, and with."""
    found: dict[str, Any] = {"python": platform.python_version(), "device": str(setting.device)}
    for name in ("torch", "transformers", "triton", "accelerate", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if setting.queues:
        card = torch.cuda.get_device_properties(setting.device)
        found |= {"card": card.name, "memory_gib": round(card.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "capability": f"{card.major}.{card.minor}"}
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return found | {"commit": commit.stdout.strip() or "unknown"}


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
            "on the set, kernels": lambda f=on_set: f(row_products(setting.device)),
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
    from tdistill.models.head.triton_rows import Tile, triton_products

    for members, width, warps in ((4, 256, 4), (8, 512, 4), (32, 64, 4), (32, 128, 8), (64, 64, 8)):
        tile = Tile(members, width, warps)
        yield f"tile {members} x {width}, {warps} warps", triton_products(tile)


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
