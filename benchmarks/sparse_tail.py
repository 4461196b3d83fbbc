"""What truncating the cache does to calibration, and what a few sampled tail tokens repair.

    python benchmarks/sparse_tail.py --teacher FOLDER --out runs/sparse-tail

One teacher, one student (some of its layers, healed by cross-entropy), one set of plain teacher
samples; the same updates with evidence of different kinds, from truncated sets to the live teacher.
Judged on plain samples that no run has seen. docs/log.md, 2026-11-24, has the numbers.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from tdistill import core
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel, load
from tdistill.models.layout import pack
from tdistill.models.scores import step_scores
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.teacher.rollouts import collect_rollouts
from tdistill.teacher.source import CachedTeacher, LiveTeacher
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import KD, Card, Objective, SeqKD, SparseKD, StepLoss, Views
from tdistill.training.student import drop_layers, evenly_spaced
from tdistill.training.train import train_student

BINS = 15


@dataclass(frozen=True)
class Truncated(Objective):
    """``KL(proj_p pi* || pi)``: plain truncation, with or without the sampled action put back."""

    name: ClassVar[str] = "truncated"
    card: ClassVar[Card] = Card(
        "comparison", "KL(proj_p pi* || pi)", "proj_p pi*", "off the set", "sets", "V D", "-"
    )
    set_top_p: float | None = None
    with_action: bool = False  # whether an action outside its set becomes a member

    def loss(self, views: Views, batch: Any) -> StepLoss:
        """Forward KL to the projected teacher."""
        student = views.student
        kept = ~batch.inserted | self.with_action
        log_probs = student.on_set - student.log_normaliser[batch.sets.step]
        offsets = core.kept_offsets(kept, batch.sets.offsets)
        return StepLoss(core.set_forward_kl(batch.sets.log_probs[kept], log_probs[kept], offsets))


def main() -> None:
    """Sample, train every kind on every seed, judge, print the table."""
    options = arguments()
    torch.set_num_threads(1)
    teacher = load(options.teacher)
    live = LiveTeacher(teacher, CaptureConfig(1.0, None))
    rows = {"held-out": sample(teacher, options, CaptureConfig(0.9, None), seed=1).rows()}
    depth = teacher.model.config.num_hidden_layers
    student = drop_layers(teacher, evenly_spaced(depth, options.layers))
    runs = list(kinds(teacher, options))
    rows["train"] = runs[0][2].rows()
    settings, folder = training(options, seed=0), options.out / "checkpoints"
    start = fit(student, SeqKD(), rows["train"], settings, folder=folder, live=live)
    table = {"start": [judge(start, live, rows["held-out"])]}
    size: dict[str, float] = {}
    for label, objective, cache in runs:
        reads = objective.needs_sets and not objective.needs_live_teacher
        if reads:
            size[label] = sum(s.bytes for s in cache.manifest.shards) / cache.manifest.steps
        for seed in range(options.seeds):
            source = CachedTeacher(cache) if objective.needs_sets else None
            begun, settings = time.perf_counter(), training(options, seed=seed)
            evidence: dict[str, Any] = {"folder": folder, "live": live, "source": source}
            trained = fit(start, objective, cache.rows(), settings, **evidence)
            found = judge(trained, live, rows["held-out"])
            table.setdefault(label, []).append(found)
            print(f"{label} seed {seed}: {time.perf_counter() - begun:.0f} s {found}", flush=True)
    measures = "forward KL | ECE | entropy student - teacher | mass off p = 0.8"
    print(f"\n| evidence | bytes a step | {measures} |")
    print("|---|---|---|---|---|---|")
    for label, found in table.items():
        cells = [spread([f[name] for f in found]) for name in found[0]]
        stored = f"{size[label]:.0f}" if label in size else "-"
        print(f"| {label} | {stored} | {' | '.join(cells)} |")
    (options.out / "results.json").write_text(json.dumps({"bytes": size, "runs": table}, indent=1))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--teacher", required=True, help="folder of a small causal model")
    parser.add_argument("--out", type=Path, required=True, help="folder for caches and results")
    parser.add_argument("--layers", type=int, default=2, help="layers of the student")
    parser.add_argument("--rows", type=int, default=1024, help="plain samples to train on")
    parser.add_argument("--tokens", type=int, default=64, help="length limit of a sample")
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3, help="orders of the data")
    return parser.parse_args()


def sample(
    teacher: LanguageModel, options: argparse.Namespace, capture: CaptureConfig, *, seed: int
) -> Cache:
    """Plain samples from the begin token; the same responses whatever is captured."""
    count = options.rows if seed == 0 else options.rows // 4
    config = RolloutConfig(
        n=count, sampling_top_p=1.0, max_new_tokens=options.tokens, seed=seed, capture=capture
    )
    begin = teacher.tokenizer.bos_token_id
    folder = options.out / f"cache-{seed}-{capture.captured_top_p}-{capture.tail_samples}"
    with CacheWriter(folder, identity_of(teacher, capture)) as writer:
        for _ in collect_rollouts(teacher, [(begin,)], config, writer):
            pass
    return Cache(folder)


def kinds(
    teacher: LanguageModel, options: argparse.Namespace
) -> Iterator[tuple[str, Objective, Cache]]:
    """What is compared: label, objective, evidence."""
    whole = sample(teacher, options, CaptureConfig(0.5, None), seed=0)
    yield "live teacher", KD(support="vocabulary"), whole
    yield "sampled token only (seqkd)", SeqKD(), whole
    for p in (0.5, 0.8):
        plain = sample(teacher, options, CaptureConfig(p, None), seed=0)
        yield f"set p = {p}", Truncated(), plain
        yield f"set p = {p} + the action", Truncated(with_action=True), plain
        for draws in (2, 8, 16):
            capture = CaptureConfig(p, None, tail_samples=draws)
            with_tail = sample(teacher, options, capture, seed=0)
            yield f"set p = {p} + {draws} tail draws", SparseKD(), with_tail


def training(options: argparse.Namespace, *, seed: int) -> TrainConfig:
    """The same updates for every run."""
    return TrainConfig(
        steps=options.updates,
        batch_size=options.batch,
        learning_rate=options.learning_rate,
        warmup_steps=options.updates // 20,
        save_steps=10 * options.updates,
        logging_steps=options.updates,
        seed=seed,
    )


def fit(
    student: LanguageModel,
    objective: Objective,
    rows: list[Row],
    config: TrainConfig,
    *,
    folder: Path,
    live: LiveTeacher,
    source: Any = None,
) -> LanguageModel:
    """A trained copy of the student."""
    own = LanguageModel(copy.deepcopy(student.model), student.tokenizer, student.name)
    shutil.rmtree(folder, ignore_errors=True)
    trained, _ = train_student(
        own,
        objective,
        rows,
        config,
        checkpoints=folder,
        vocabulary_size=live.vocabulary_size,
        source=source,
        live_teacher=live,
    )
    return trained


@torch.no_grad()
def judge(model: LanguageModel, live: LiveTeacher, rows: list[Row]) -> dict[str, float]:
    """Forward KL, calibration against the teacher, sharpness, and mass off the 0.8 sets."""
    read = pack(rows, pad_id=model.pad_id)
    scores = step_scores(model.model, read, vocabulary_size=live.vocabulary_size)
    q = scores.rows(0, len(scores)).log_softmax(-1).double()
    p = live.scores(read).rows(0, len(scores)).log_softmax(-1).double()
    confidence, top = q.exp().max(-1)
    truth = p.exp().gather(1, top[:, None]).squeeze(1)
    bin_of = (confidence * BINS).long().clamp(max=BINS - 1)
    gap = torch.zeros(BINS, dtype=q.dtype).index_add(0, bin_of, confidence - truth)
    sets = core.top_p_sets(p, 0.8)
    inside = core.segment_sum(q.exp()[sets.step, sets.ids], sets.offsets)
    return {
        "forward_kl": float(core.forward_kl(p, q).mean()),
        "ece": float(gap.abs().sum() / len(q)),
        "entropy": float(((p.exp() * p).sum(-1) - (q.exp() * q).sum(-1)).mean()),
        "off_set": float(1 - inside.mean()),
    }


def spread(values: list[float]) -> str:
    """Mean, and half the range over seeds."""
    half = (max(values) - min(values)) / 2
    return f"{sum(values) / len(values):.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
