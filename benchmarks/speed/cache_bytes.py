"""Benchmark 5: bytes, captured mass, error and speed of the cache, on the rows of benchmark 1."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.speed.bars import Report
from benchmarks.speed.distillkit import SETTINGS, bytes_per_step, setting_of
from benchmarks.speed.layouts import megatron_bytes
from benchmarks.speed.materials import score
from benchmarks.speed.measure import Spread, spread_of, timed
from benchmarks.speed.protocol import WorkerError
from benchmarks.speed.settings import Setting

MASSES = (0.5, 0.8, 0.9, 0.95, 0.99)
CAPS = (256, 64, None)
CAP = 256  # the default, which the bars are measured at
WHOLE = 0.999  # p of the caches whose sets end by their gain
MICRO_BATCH = 4
ROUNDED = 4  # rows whose gradients are compared
LARGEST = 4096  # members that the search looks at


@dataclass(frozen=True)
class Problem:
    """The rows with the teacher's distribution at every step of their responses."""

    setting: Setting
    teacher: Any
    rows: list[Any]

    @cached_property
    def _passes(self) -> dict[bytes, Any]:
        return {}

    def live(self, capture: Any) -> Any:
        """The teacher under a capture; it reads every row once, whatever the capture."""
        from tdistill.teacher.source import LiveTeacher

        live = LiveTeacher(self.teacher, capture)
        read, passes = live.scores, self._passes

        def remembered(layout: Any) -> Any:
            key = layout.input_ids.numpy().tobytes()
            if key not in passes:
                passes[key] = read(layout)
            return passes[key]

        live.scores = remembered
        return live

    @cached_property
    def truth(self) -> Any:
        """Log-probabilities [T, V], rows end to end."""
        return self._read[0]

    @cached_property
    def normaliser(self) -> Any:
        """Log-normalisers [T]."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[Any, Any]:
        import torch

        log_probs, normalisers = [], []
        with torch.no_grad():
            for row in self.rows:
                ids = torch.tensor([[*row.prompt_ids, *row.response_ids[:-1]]])
                logits = self.teacher.model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 :]
                normalisers.append(logits.logsumexp(-1))
                log_probs.append(logits - normalisers[-1][:, None])
        return torch.cat(log_probs), torch.cat(normalisers)

    @cached_property
    def cumulative(self) -> Any:
        """Mass of the k most probable tokens of every step, [T, LARGEST]."""
        return self.truth.topk(LARGEST, sorted=True).values.exp().double().cumsum(-1)

    def sizes(self, mass: float, cap: int | None) -> Any:
        """Set sizes for a threshold and a cap."""
        return ((self.cumulative < mass).sum(-1) + 1).clamp(max=min(cap or LARGEST, LARGEST))

    def sizes_by_gain(self, gain: float) -> Any:
        """Set sizes where a member must add ``gain`` nats to the log mass of its set."""
        mass = self.cumulative
        gains = (mass[:, 1:] / mass[:, :-1]).log()
        return (gains > gain).sum(-1) + 1

    def held(self, sizes: Any) -> float:
        """Mean mass of the most probable tokens of every step."""
        return float(self.cumulative.gather(1, sizes[:, None] - 1).mean())


def run(setting: Setting) -> Report:
    """The curve over p and K, and the caches that hold as much mass as the peers'."""
    import torch

    from tdistill.models.language_model import load

    torch.set_num_threads(setting.threads)
    setting.materials.make()
    rows = setting.materials.read_rows()[: setting.form.cache_rows]
    problem = Problem(setting, load(setting.materials.teacher), rows)
    report = Report()
    curve = [_measure(problem, mass, cap) for cap in CAPS for mass in MASSES]
    _own_bars(problem, curve, report)
    peers = [_against(problem, name, report) for name in SETTINGS]
    report.details = {
        "curve": curve,
        "peers": [*peers, *_megatron(problem)],
        "rounding": _rounding(problem),
    }
    return report


def _rounding(problem: Problem) -> list[dict[str, Any]]:
    """What rounding changes, on a few rows and the student of the training step."""
    from benchmarks.speed.rounding import effects, exact_evidence

    from tdistill.models.language_model import load

    rows = problem.rows[:ROUNDED]
    steps = sum(len(row.response_ids) for row in rows)
    log_probs, normaliser = problem.truth[:steps], problem.normaliser[:steps]
    student = load(problem.setting.materials.student)
    return effects(student, rows, exact_evidence(rows, log_probs, normaliser, 0.9, CAP))


def _measure(
    problem: Problem, mass: float, cap: int | None, gain: float | None = None
) -> dict[str, Any]:
    """One cache: what it takes, what it holds, and how exact and fast its reading is."""
    from tdistill.teacher.cache.blocks import blocks
    from tdistill.teacher.cache.reader import Cache
    from tdistill.teacher.cache.row_layout import token_bits
    from tdistill.teacher.config import CaptureConfig

    folder: Path = problem.setting.work / "cache-measured"
    shutil.rmtree(folder, ignore_errors=True)
    score(problem.live(CaptureConfig(mass, cap, min_gain=gain)), problem.rows, folder)
    cache = Cache(folder)
    found = cache.evidence(problem.rows)
    exact = problem.truth[found.sets.step, found.sets.ids]
    steps, members = len(found.sets), len(found.sets.ids)
    total = sum(shard.bytes for shard in cache.manifest.shards)
    of_members = sum(int(block.member_bits.sum()) for block in blocks(cache)) / 8
    prompts = sum(len(row.prompt_ids) for row in problem.rows) * token_bits(problem.truth.shape[1])
    many = problem.rows * 16
    read = timed(lambda: cache.evidence(many))
    read()
    rates = [16 * steps / read() for _ in range(problem.setting.form.repetitions)]
    return {
        "p": mass,
        "max_set_size": cap,
        "min_gain": gain,
        "bytes_per_step": total / steps,
        "bytes_per_member": of_members / members,
        "bytes_beside_members": (total - of_members - prompts / 8) / steps,
        "members_per_step": members / steps,
        "mass": float(exact.exp().sum()) / steps,
        "largest_error": float((found.sets.log_probs - exact).abs().max()),
        "positions_per_second": spread_of(rates).json(),
        "members_per_second": spread_of(rates).value * members / steps,
    }


def _own_bars(problem: Problem, curve: list[dict[str, Any]], report: Report) -> None:
    capped = [line for line in curve if line["max_set_size"] == CAP]
    what = (
        f"{len(problem.rows)} teacher rows of {problem.setting.form.tokens} tokens, V = 49,152, "
        f"K = {CAP}, median over p from {MASSES[0]} to {MASSES[-1]}"
    )
    of_member = spread_of([line["bytes_per_member"] for line in capped])
    report.add("cache.member_bytes", of_member, f"{what}: tokens and levels of the sets")
    beside = spread_of([line["bytes_beside_members"] for line in capped])
    where = "all other bytes of the files (tokens, normalisers, keys, headers) but the prompts"
    report.add("cache.step_bytes", beside, f"{what}: {where}")
    (default,) = [line for line in capped if line["p"] == 0.9]
    decode = default["positions_per_second"]
    of = f"{len(problem.rows)} teacher rows of {problem.setting.form.tokens} tokens, K = {CAP}"
    what = f"{of}, p = 0.9, {default['members_per_step']:.0f} members a step"
    report.add("cache.decode", Spread(decode["value"], *decode["spread"]), f"{what}; evidence()")
    worst = max(line["largest_error"] for line in curve)
    report.add("cache.error", Spread(worst, worst, worst), f"{what}, and every other p and K")


def _against(problem: Problem, name: str, report: Report) -> dict[str, Any]:
    """Our sets of the mean mass that a DistillKit setting holds, ended by their gain."""
    published = SETTINGS[name]
    k, vocabulary = published["k"], problem.truth.shape[1]
    theirs = bytes_per_step(published, vocabulary)
    target = float(problem.cumulative[:, k - 1].mean())
    ours = _measure(problem, WHOLE, LARGEST, _gain(problem, target))
    share = ours["bytes_per_step"] / theirs
    what = (
        f"{len(problem.rows)} teacher rows, V = {vocabulary}; DistillKit k = {k}: {theirs} bytes, "
        f"mean mass {target:.4f}; ours min_gain = {ours['min_gain']:.2g}: "
        f"{ours['members_per_step']:.1f} members, {ours['bytes_per_step']:.1f} bytes with prompts, "
        f"tokens and normalisers, mean mass {ours['mass']:.4f}"
    )
    report.add(f"cache.against_distillkit.{name}", Spread(share, share, share), what)
    line = {"name": f"DistillKit, {name}", "bytes_per_step": theirs, "mass": target}
    return {**line, **_measured(problem.setting, published, vocabulary), "ours": _words(ours)}


def _gain(problem: Problem, target: float) -> float:
    """The largest gain at which the sets hold a mean mass."""
    low, high = -20.0, 0.0  # log gains: all members, one
    for _ in range(24):
        middle = (low + high) / 2
        enough = problem.held(problem.sizes_by_gain(math.exp(middle))) >= target
        low, high = (middle, high) if enough else (low, middle)
    return math.exp(low)


def _measured(setting: Setting, published: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """What DistillKit's own code does with the rows, where it runs."""
    given = {"teacher": str(setting.materials.teacher), "rows": str(setting.materials.rows_file)}
    try:
        with setting.worker("distillkit_cache", given, peer=True) as worker:
            found = worker.ask({"setting": setting_of(published, vocabulary)})
    except WorkerError as error:
        print(f"    bytes by formula only: {error}", flush=True)
        return {"run": "bytes by its formula, not run"}
    keys = ("bytes_per_step", "mass", "mean_error", "worst_error", "positions_per_second")
    return {key: found[key] for key in keys}


def _megatron(problem: Problem) -> list[dict[str, Any]]:
    """Megatron-LM's layout by its rules, with sets of the same p and K."""
    lines = []
    for mass in (0.8, 0.9):
        sizes = problem.sizes(mass, CAP)
        lengths = [len(row.response_ids) for row in problem.rows]
        of_rows = [part.tolist() for part in sizes.split(lengths)]
        groups = [of_rows[i : i + MICRO_BATCH] for i in range(0, len(of_rows), MICRO_BATCH)]
        micro = [list(chain.from_iterable(group)) for group in groups]
        size = megatron_bytes(micro, most=CAP) / len(sizes)
        name = f"Megatron-LM, p = {mass}, before zstd"
        lines.append({"name": name, "bytes_per_step": size, "mass": problem.held(sizes)})
    return lines


def _words(ours: dict[str, Any]) -> str:
    return f"min_gain {ours['min_gain']:.2g}: {ours['bytes_per_step']:.1f} bytes"
