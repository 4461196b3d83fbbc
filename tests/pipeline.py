"""A world in which the whole pipeline runs in seconds, and ways to run and to kill it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from tdistill import cli
from tdistill.models.language_model import save
from tdistill.teacher.cache.checked import NOTE
from tiny import tiny_lm

OBJECTIVES = ("sft", "seqkd", "kd", "bellman_distill")
LABELS = ("teacher", "start", *OBJECTIVES)
PHASE = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 1, "save_steps": 2}


def write_world(folder: Path, **changes: Any) -> Path:
    """A random teacher, data and a recipe with some sections changed; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    save(tiny_lm("llama", scale=3.0), folder / "teacher")
    for split, count, stride in (("train", 9, 1), ("test", 6, 3), ("valid", 4, 14)):
        write_rows(folder / f"{split}.jsonl", [prompt(i, stride) for i in range(count)])
    recipe = {
        "teacher": {"path": str(folder / "teacher")},
        "student": {"layers": 2},
        "data": {s: str(folder / f"{s}.jsonl") for s in ("train", "valid", "test")},
        "rollouts": {"n": 2, "max_new_tokens": 8, "batch_size": 4, "batches_per_shard": 2},
        "start": {"rows": "both", "training": PHASE | {"learning_rate": 1e-2, "steps": 6}},
        "training": PHASE,
        "evaluation": {"seeds": 2, "max_new_tokens": 8, "tuned_temperatures": [0.5]},
    }
    recipe["data"]["template"] = "plain"
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes, sort_keys=False))
    return path


def prompt(i: int, stride: int) -> str:
    """A few letters."""
    return " ".join("abcdefghij"[(i * stride + j) % 10] for j in range(2 + (i + stride) % 4))


def write_rows(path: Path, prompts: list[str], completion: str = " k l m") -> None:
    """Prompts with completions, as JSONL."""
    rows = [{"prompt": p, "completion": completion} for p in prompts]
    path.write_text("\n".join(json.dumps(row) for row in rows))


@dataclass(frozen=True)
class Finished:
    """A run that was never interrupted: its recipe and its folder. Not to be changed."""

    recipe: Path
    folder: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """What it wrote."""
        return read_json(self.folder / "metrics.json")


def finish(folder: Path, **changes: Any) -> Finished:
    """Do everything once."""
    recipe = write_world(folder / "world", **changes)
    assert cli.main(["run", str(recipe), "--out", str(folder / "out")]) == 0
    return Finished(recipe, folder / "out")


def finish_once(folder: Path, copy: Path) -> Finished:
    """Do everything, or wait for the process that does; each process has a copy of its own."""
    done = folder / "done"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not done.exists():
            finish(folder)
            done.touch()
    shutil.copytree(folder / "out", copy)
    return Finished(folder / "world" / "recipe.yaml", copy)


def read_json(path: Path) -> Any:
    """Plain JSON: NaN and infinity are refused, as every other reader would."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path}: {constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def digest(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder, but for what was read whole of a cache, and when."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NOTE)
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def untimed(metrics: dict[str, Any]) -> dict[str, Any]:
    """All numbers that must not depend on how often a run was interrupted."""
    kept = copy.deepcopy({k: v for k, v in metrics.items() if k not in ("created", "seconds")})
    for curve in kept["curves"].values():
        for columns in (curve["mean"], *curve["seeds"]):
            del columns["tokens_per_second"]
    return kept


def kill_at(moment: str, *arguments: str) -> str:
    """Run a command in a process of its own that is killed at a moment; returns its output."""
    done = subprocess.run(
        [sys.executable, __file__, moment, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    return done.stdout


def _die(*arguments: Any, **options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(moment: str) -> None:
    """Replace one function so that the process kills itself there, as kill -9 would."""
    from tdistill.evaluation import evaluate
    from tdistill.evaluation import sweep as sweeping
    from tdistill.models import language_model as lm
    from tdistill.teacher.cache.manifest import Manifest
    from tdistill.training.trainer import DistillTrainer

    trainer: Any = DistillTrainer
    original_log, original_score = trainer.log, evaluate.score_responses
    original_measured: Any = vars(sweeping)["_measured"]
    original_write, original_save = Manifest.write, lm.save
    counts = {"judged": 0, "swept": 0}

    def log(self: Any, *arguments: Any, **options: Any) -> None:
        original_log(self, *arguments, **options)
        if (self.objective.name, self.state.global_step) == ("kd", 3):
            _die()

    def score(*arguments: Any, **options: Any) -> Any:
        counts["judged"] += 1
        return _die() if counts["judged"] == 6 else original_score(*arguments, **options)

    def measured(*arguments: Any) -> Any:
        counts["swept"] += 1
        return _die() if counts["swept"] == 4 else original_measured(*arguments)

    def write(self: Any, folder: Path) -> None:
        if len(self.shards) == 2:
            _die()
        original_write(self, folder)

    def save_model(model: Any, folder: Path) -> None:
        original_save(model, folder)
        if "untrained" not in folder.name:  # written beside its place, under another name
            _die()

    places: dict[str, tuple[Any, str, Any]] = {
        "between-shard-and-manifest": (Manifest, "write", write),
        "inside-a-checkpoint": (trainer, "_save_rng_state", _die),
        "after-a-checkpoint": (trainer, "log", log),
        "before-the-record-of-a-model": (lm, "save", save_model),
        "during-evaluation": (evaluate, "score_responses", score),
        "during-a-sweep": (sweeping, "_measured", measured),
    }
    setattr(*places[moment])


if __name__ == "__main__":
    _arm(sys.argv[1])
    sys.exit(cli.main(sys.argv[2:]))
