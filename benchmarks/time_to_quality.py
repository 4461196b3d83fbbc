"""Time to quality: seconds until the held-out forward KL that TRL's GKD has after its 60th update.

    python -m benchmarks.time_to_quality --work DIR --peers .peers/bin/python --json OUT.json

The same teacher, students and training rows for all, each in its own trainer's loop, one after the
other; updates are on the clock, held-out evaluations are not. The teacher's rollouts with capture
are counted, for ours, by the rows that were used, and not counted; GKD trains on the same responses
as if they had been given. Seconds are of the processor as well as of the clock: on a busy machine
only those can be compared. Hours on two cores; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.speed.materials import Materials, demo_prompts
from benchmarks.speed.protocol import ROOT, Worker

# With its default loss, a Jensen-Shannon divergence, and with the forward KL that kd has, too.
PEERS: dict[str, dict[str, Any]] = {"gkd, TRL": {}, "gkd forward, TRL": {"beta": 0.0}}
SHARES = (2, 4, 8, 16)
EVERY = 5  # updates from one evaluation to the next
PATIENCE = 2.0  # times the slowest peer's own seconds, after which a method is given up


@dataclass(frozen=True)
class Point:
    """A method after some updates: ``[updates, seconds, processor seconds, KL]``."""

    updates: int
    seconds: float
    processor: float
    kl: float


def methods() -> dict[str, dict[str, Any]]:
    """Ours by name: an objective and fields of ``training``."""
    kept = {"kept_logits_mib": 512}
    found: dict[str, dict[str, Any]] = {"kd": {"objective": "kd"}}
    found["kd, kept logits"] = {"objective": "kd", "training": kept}
    for over in SHARES:
        training = {"normaliser_share": 1 / over, **kept}
        found[f"kd, share 1/{over}"] = {"objective": "kd", "training": training}
    vocabulary = "bellman_distill, vocabulary"
    found["bellman_distill"] = {"objective": vocabulary}
    training = {"normaliser_share": 1 / 8, **kept}
    found["bellman_distill, share 1/8"] = {"objective": vocabulary, "training": training}
    found["bellman_distill, sampled"] = {"objective": "bellman_distill, sampled"}
    return found


def crossing(curve: list[Point], target: float) -> Point | None:
    """Where a curve first reaches a divergence, between the evaluations around it; or None."""
    for before, after in pairwise(curve):
        if after.kl <= target < before.kl:
            part = (before.kl - target) / (before.kl - after.kl)
            pairs = zip(
                (before.updates, before.seconds, before.processor),
                (after.updates, after.seconds, after.processor),
                strict=True,
            )
            updates, seconds, processor = (a + part * (b - a) for a, b in pairs)
            return Point(round(updates), seconds, processor, target)
    return curve[0] if curve and curve[0].kl <= target else None


def learning_curve(
    worker: Worker, *, updates: int, target: float | None, most: float | None
) -> list[Point]:
    """A method's curve, from its start until the target, so many updates or seconds.

    Args:
        worker: of the method.
        updates: at most.
        target: divergence at which it ends; None: not before.
        most: processor seconds at which it ends.
    """
    curve = [Point(0, 0.0, 0.0, worker.ask({"do": "kl"})["kl"])]
    seconds = processor = 0.0
    for update in range(1, updates + 1):
        seconds += worker.step()
        processor += worker.last["processor_seconds"]
        if update % EVERY and update < updates:
            continue
        curve.append(Point(update, seconds, processor, worker.ask({"do": "kl"})["kl"]))
        print(f"    {update}: KL {curve[-1].kl:.4f}, {processor:.0f} s", flush=True)
        reached = target is not None and curve[-1].kl <= target
        if reached or (most is not None and processor > most):
            break
    return curve


def seconds_of_a_rollout(materials: Materials, count: int) -> float:
    """Processor seconds of a response of the rows' length, captured and written."""
    import shutil

    from tdistill.models.language_model import load
    from tdistill.teacher.cache.writer import CacheWriter, identity_of
    from tdistill.teacher.config import RolloutConfig
    from tdistill.teacher.rollouts import collect_rollouts

    teacher, folder = load(materials.teacher), materials.folder / "rollouts-timed"
    shutil.rmtree(folder, ignore_errors=True)
    prompts = [ids for _, ids in demo_prompts(teacher)[:count]]
    longest = materials.tokens - min(map(len, prompts))
    config = RolloutConfig(n=1, max_new_tokens=longest, batch_size=count)
    start = time.process_time()
    with CacheWriter(folder, identity_of(teacher, config.capture)) as writer:
        for _ in collect_rollouts(teacher, prompts, config, writer):
            pass
    return (time.process_time() - start) / count


def summary(
    curves: dict[str, list[Point]], peer: str, rollout: float, batch: int, rows: int
) -> Any:
    """Seconds until a peer's last divergence, and how many times faster, by method."""
    target = curves[peer][-1].kl
    base, found = curves[peer][-1].processor, {}
    for name, curve in curves.items():
        there = crossing(curve, target) if name != peer else curve[-1]
        if there is None:
            found[name] = {"reached": False, "kl": curve[-1].kl}
            continue
        made = 0.0 if name in PEERS else rollout * min(rows, there.updates * batch)
        found[name] = {
            "reached": True,
            "updates": there.updates,
            "seconds": there.seconds,
            "processor_seconds": there.processor,
            "with_rollouts": there.processor + made,
            "times_peer": base / there.processor if there.processor else None,
            "times_peer_with_rollouts": base / max(there.processor + made, 1e-9),
        }
    return {"target_kl": target, "methods": found}


def measure(options: argparse.Namespace, layers: int) -> Any:
    """All methods on one student."""
    from benchmarks.speed.workers.held_out import write_held_out

    from tdistill.cli import main as tdistill
    from tdistill.models.language_model import load

    materials = Materials(options.work, options.rows + options.held_out, options.tokens)
    materials.make()
    student = options.work / f"student-{layers}"
    if not student.exists():
        words = ["--from", str(materials.teacher), "--layers", str(layers)]
        tdistill(["student", *words, "--out", str(student)])
    rows = json.loads(materials.rows_file.read_text(encoding="utf-8"))
    training, kept = options.work / "training.json", options.work / "held_out.pt"
    training.write_text(json.dumps(rows[: options.rows]), encoding="utf-8")
    if not kept.exists():
        write_held_out(kept, load(materials.teacher).model, rows[options.rows :])
    given = {
        "teacher": str(materials.teacher),
        "student": str(student),
        "rows": str(training),
        "cache": str(materials.cache),
        "held_out": str(kept),
        "batch": options.batch,
        "learning_rate": options.learning_rate,
    }
    curves: dict[str, list[Point]] = {}
    for name, own in {**PEERS, **methods()}.items():
        if options.only and name not in (*PEERS, *options.only):
            continue
        print(f"{layers} layers, {name}", flush=True)
        curves[name] = _known(options, layers, name) or _curve(options, layers, name, given | own)
        if name in PEERS:
            ends = [curves[peer][-1] for peer in PEERS if peer in curves]
            options.target = min(end.kl for end in ends)
            options.most = PATIENCE * max(end.processor for end in ends)
    rollout = seconds_of_a_rollout(materials, 8)
    against = {peer: summary(curves, peer, rollout, options.batch, options.rows) for peer in PEERS}
    points = {name: [vars(point) for point in curve] for name, curve in curves.items()}
    return {"rollout_seconds": rollout, "against": against, "curves": points}


def _file(options: argparse.Namespace, layers: int, name: str) -> Path:
    return options.work / f"curve-{layers}-{name.replace(' ', '-').replace('/', '-')}.json"


def _known(options: argparse.Namespace, layers: int, name: str) -> list[Point] | None:
    path = _file(options, layers, name)
    if not path.exists():
        return None
    return [Point(**point) for point in json.loads(path.read_text(encoding="utf-8"))]


def _curve(
    options: argparse.Namespace, layers: int, name: str, given: dict[str, Any]
) -> list[Point]:
    peer = name in PEERS
    with Worker(
        f"benchmarks.speed.workers.{'gkd' if peer else 'ours'}",
        given,
        log=options.work / "logs" / f"{_file(options, layers, name).stem}.log",
        python=options.peers if peer else Path(sys.executable),
        threads=int(os.environ.get("OMP_NUM_THREADS", "2")),
    ) as worker:
        updates = options.updates if peer else options.most_updates
        limits = {} if peer else {"target": options.target, "most": options.most}
        curve = learning_curve(worker, updates=updates, **{"target": None, "most": None} | limits)
    text = json.dumps([vars(point) for point in curve])
    _file(options, layers, name).write_text(text, encoding="utf-8")
    return curve


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    bench = ROOT / "benchmarks"
    parser.add_argument("--work", type=Path, default=bench / ".work" / "quality")
    parser.add_argument("--peers", type=Path, default=bench / ".peers" / "bin" / "python")
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 18])
    parser.add_argument("--updates", type=int, default=60, help="of GKD")
    parser.add_argument("--most-updates", type=int, default=600, help="of the others")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--only", nargs="+", choices=list(methods()))
    parser.add_argument("--json", type=Path, default=Path("time_to_quality.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = {str(layers): measure(options, layers) for layers in options.layers}
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    short = {k: v["against"] for k, v in found.items()}
    print(json.dumps(short, indent=1))


if __name__ == "__main__":
    main()
