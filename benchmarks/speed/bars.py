"""The bars, the results file, and what it must hold. Torch-free."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from benchmarks.speed.measure import Spread
from benchmarks.speed.protocol import ROOT

NOT_MEASURED = "not measured: the run left it out"


@dataclass(frozen=True)
class Bar:
    """What a measurement must reach."""

    name: str
    comparison: Literal[">=", "<="]
    bar: float
    unit: str
    words: str

    def met(self, value: float | None) -> bool:
        """Whether a value reaches the bar; nothing measured does not.

        Example:
            >>> Bar("x", "<=", 0.25, "", "").met(0.2)
            True
        """
        if value is None:
            return False
        return value >= self.bar if self.comparison == ">=" else value <= self.bar


BARS: tuple[Bar, ...] = (
    Bar(
        "training_step.against_gkd.bellman_distill", ">=", 3.5, "times",
        "training step, bellman_distill on the set, against TRL's GKDTrainer: tokens/s",
    ),
    Bar(
        "training_step.against_gkd.kd", ">=", 3.5, "times",
        "training step, kd with its exact normaliser, against TRL's GKDTrainer: tokens/s",
    ),
    Bar(
        "training_step.against_on_policy", ">=", 10.0, "times",
        "training step against TRL's DistillationTrainer: response tokens/s",
    ),
    Bar(
        "training_step.memory", "<=", 0.25, "of GKD's",
        "peak memory of training over the bare models",
    ),
    Bar(
        "scaling.vocabulary", "<=", 0.10, "growth",
        "step time without the optimiser from V = 32k to 256k",
    ),
    Bar(
        "scaling.prefix_sharing", ">=", 2.0, "times",
        "8 responses a prompt, prompt 128, response 64: shared prefix against separate rows",
    ),
    Bar(
        "loss_alone.full", ">=", 50.0, "times",
        "loss alone against full KL with materialised logits",
    ),
    Bar("loss_alone.chunked", ">=", 20.0, "times", "loss alone against the faster chunked KL"),
    Bar(
        "rollouts.against_output_logits", ">=", 1.5, "times",
        "rollouts with capture against generate + output_logits + selection: tokens/s",
    ),
    Bar("rollouts.capture_cost", "<=", 0.10, "extra time", "capture over sampling alone"),
    Bar("cache.member_bytes", "<=", 3.2, "bytes", "cache: bytes a set member"),
    Bar("cache.step_bytes", "<=", 8.0, "bytes", "cache: bytes a step beside its members"),
    Bar(
        "cache.against_distillkit.recommended", "<=", 0.6, "of its bytes",
        "cache at equal captured mass against DistillKit's recommended setting",
    ),
    Bar(
        "cache.against_distillkit.budget", "<=", 0.6, "of its bytes",
        "cache at equal captured mass against DistillKit's budget setting",
    ),
    Bar("cache.decode", ">=", 1e6, "positions/s", "cache: steps decoded a second"),
    Bar("cache.error", "<=", 0.004, "nats", "cache: largest error of a log-probability"),
    Bar(
        "limit.blocks", ">=", 0.7, "of the blocks",
        "speed of the training step without optimiser against the bare blocks",
    ),
    Bar(
        "selection.against_sort", "<=", 0.2, "of sort's time",
        "top-p selection against sort on [1024, 151936]",
    ),
    Bar("start_up.help", "<=", 1.0, "s", "tdistill --help"),
    Bar("start_up.import", "<=", 0.3, "s", "import tdistill"),
    Bar("start_up.torch", "<=", 0.0, "loads", "torch loaded by either of the two"),
)  # fmt: skip


@dataclass
class Report:
    """What one benchmark found: a value for each of its bars, and tables for the page."""

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, spread: Spread, run: str) -> None:
        """Keep the value of a bar."""
        assert name in {bar.name for bar in BARS}, name
        self.figures[name] = {**spread.json(), "run": run}

    def leave_out(self, name: str, why: str) -> None:
        """Say why a bar was not measured."""
        assert name in {bar.name for bar in BARS}, name
        self.figures[name] = {"value": None, "spread": None, "run": why}


def results(
    reports: Mapping[str, Mapping[str, Any]], reasons: Mapping[str, str], *, form: str
) -> dict[str, Any]:
    """The results file: machine, one entry a bar, and the details for the page.

    Args:
        reports: figures and details of each benchmark.
        reasons: why a bar is missed, by its name; used only where it is.
        form: size of the run.
    """
    figures = {n: f for report in reports.values() for n, f in report["figures"].items()}
    missing = {"value": None, "spread": None, "run": NOT_MEASURED}
    entries = [_entry(bar, figures.get(bar.name, missing), reasons) for bar in BARS]
    return {
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "form": form,
        "entries": entries,
        "details": {name: report["details"] for name, report in reports.items()},
    }


def _entry(bar: Bar, figure: Mapping[str, Any], reasons: Mapping[str, str]) -> dict[str, Any]:
    met = bar.met(figure["value"])
    entry = {
        "name": bar.name,
        "words": bar.words,
        "value": figure["value"],
        "spread": figure["spread"],
        "unit": bar.unit,
        "comparison": bar.comparison,
        "bar": bar.bar,
        "met": met,
        "run": figure["run"],
    }
    if not met and bar.name in reasons:
        entry["reason"] = " ".join(reasons[bar.name].split())
    return entry


def problems(found: Mapping[str, Any]) -> list[str]:
    """What is wrong with a results file."""
    wrong = [f"no {key}" for key in ("machine", "date", "commit", "entries") if key not in found]
    entries = {entry["name"]: entry for entry in found.get("entries", ())}
    for bar in BARS:
        entry = entries.pop(bar.name, None)
        if entry is None:
            wrong.append(f"{bar.name}: no entry")
            continue
        if (entry["bar"], entry["comparison"]) != (bar.bar, bar.comparison):
            wrong.append(f"{bar.name}: another bar than {bar.comparison} {bar.bar}")
        if entry["met"] is not bar.met(entry["value"]):
            wrong.append(f"{bar.name}: met does not agree with the value {entry['value']}")
        if not entry["met"] and not entry.get("reason"):
            wrong.append(f"{bar.name}: missed, without a reason")
        if not entry["run"]:
            wrong.append(f"{bar.name}: does not say what was run")
        if entry["value"] is not None and not _within(entry):
            wrong.append(f"{bar.name}: value outside its spread")
    return wrong + [f"{name}: no such bar" for name in entries]


def _within(entry: Mapping[str, Any]) -> bool:
    low, high = entry["spread"]
    return low <= entry["value"] <= high


def machine() -> dict[str, Any]:
    """Processor, cores, memory, and the versions that matter."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    if known.exists():
        for line in known.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or "unknown"
