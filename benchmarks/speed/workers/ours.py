"""tdistill's own training loop on cached or random evidence, with the time of its parts."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.protocol import Channel
from benchmarks.speed.workers.gate import Gate, load_rows, settle
from benchmarks.speed.workers.held_out import QualityGate
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from tdistill.core import TopPSets
from tdistill.evidence.collator import Collator
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel, load_tokenizer
from tdistill.models.score_forms import LinearStepScores
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.source import CachedTeacher
from tdistill.training import train
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import KD, BellmanDistill, Objective
from tdistill.training.trainer import DistillTrainer

OBJECTIVES: dict[str, Objective] = {
    "kd": KD(),
    "bellman_distill": BellmanDistill(normaliser="set"),
    "bellman_distill, vocabulary": BellmanDistill(normaliser="vocabulary"),
    "bellman_distill, sampled": BellmanDistill(normaliser="sampled"),
}
"""As they are by default, with the exact normaliser; bellman_distill on the set alone, too."""


class Clock:
    """Seconds of named parts, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - start
                self.seconds[name] += whole - self._inside.pop()
                if self._inside:
                    self._inside[-1] += whole

        return call

    def take(self) -> dict[str, float]:
        """The seconds since last asked."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


class RandomTeacher:
    """Sets of random tokens with the sizes of a real teacher: median 4, mean about 20."""

    def __init__(self, vocabulary: int, largest: int = 512) -> None:
        self.vocabulary, self.largest = vocabulary, largest

    def evidence(self, rows: Sequence[Row], *, set_top_p: float | None = None) -> Evidence:
        generator = torch.Generator().manual_seed(sum(len(r.response_ids) for r in rows))
        steps = sum(len(row.response_ids) for row in rows)
        sizes = (1.4 + 1.8 * torch.randn(steps, generator=generator)).exp().long()
        offsets = torch.cat([torch.zeros(1), sizes.clamp(1, self.largest).cumsum(0)]).long()
        start = torch.randint(self.vocabulary, (steps,), generator=generator)
        step = torch.repeat_interleave(torch.arange(steps), offsets.diff())
        inside = torch.arange(int(offsets[-1])) - offsets[step]
        ids = (start[step] + 7 * inside) % self.vocabulary  # distinct within a set
        log_probs = -(offsets.diff()[step].float() / 0.8).log()
        flat = torch.full((steps,), -1.0)
        return Evidence(TopPSets(ids, log_probs, offsets), flat, flat)


def student_of(options: dict[str, Any]) -> Any:
    """A student from a folder, or one of random weights with another vocabulary."""
    if "vocabulary" not in options:
        return AutoModelForCausalLM.from_pretrained(options["student"], dtype=torch.float32)
    config = AutoConfig.from_pretrained(options["student"])
    config.vocab_size = options["vocabulary"]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def rows_of(options: dict[str, Any], vocabulary: int) -> list[Row]:
    """Rows of a file, or random ones: ``n`` responses to each prompt."""
    if "rows" in options:
        return [
            Row(tuple(row["prompt_ids"]), tuple(row["response_ids"]), False)
            for row in load_rows(options["rows"])
        ]
    shape = options["random_rows"]
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=generator).tolist())

    prompts = [tokens(shape["prompt"]) for _ in range(shape["rows"] // shape["n"])]
    return [
        Row(prompt, tokens(shape["response"]), True)
        for prompt in prompts
        for _ in range(shape["n"])
    ]


class OnTheClock(TrainerCallback):
    """Puts the optimiser on the clock once there is one."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        optimizer.step = self.clock.wrap("optimiser", optimizer.step)


def timed_trainer(clock: Clock, gate: TrainerCallback) -> type[DistillTrainer]:
    """The trainer with its parts on the clock, held between updates."""

    class Timed(DistillTrainer):
        def __init__(self, *args: Any, callbacks: list[Any], **kwargs: Any) -> None:
            super().__init__(*args, callbacks=[*callbacks, OnTheClock(clock), gate], **kwargs)
            seen = self.diagnostics
            seen.observe = clock.wrap("diagnostics", seen.observe)
            self.compute_loss = clock.wrap("blocks and loss, forward", self.compute_loss)
            accelerator = self.accelerator
            accelerator.backward = clock.wrap("backward", accelerator.backward)
            accelerator.clip_grad_norm_ = clock.wrap("clipping", accelerator.clip_grad_norm_)

    Collator.__call__ = clock.wrap("collate", Collator.__call__)
    LinearStepScores.at = clock.wrap("set scores, forward", LinearStepScores.at)
    return Timed


def main() -> None:
    channel = Channel()
    options = channel.options
    model = student_of(options)
    vocabulary = model.config.vocab_size
    student = LanguageModel(model, load_tokenizer(options["student"]), "student")
    bare = settle(model)
    rows, clock = rows_of(options, vocabulary), Clock()
    tokens = sum(len(row.response_ids) for row in rows)

    def extra() -> dict[str, Any]:
        return {"tokens": tokens, "parts": clock.take()}

    source: Any = (
        CachedTeacher(Cache(Path(options["cache"])))
        if "cache" in options
        else RandomTeacher(vocabulary)
    )
    source.evidence = clock.wrap("cache read", source.evidence)
    config = TrainConfig(
        steps=1_000_000,
        batch_size=options.get("batch", len(rows)),
        learning_rate=options.get("learning_rate", 1e-5),
        warmup_steps=0,
        scheduler="constant",
        save_steps=1_000_000,
        logging_steps=1_000_000,
        **options.get("training", {}),
    )
    gate = Gate(channel, bare, extra)
    if "held_out" in options:
        gate = QualityGate(channel, bare, model, options["held_out"])
    train.DistillTrainer = timed_trainer(clock, gate)
    with tempfile.TemporaryDirectory() as folder:
        train.train_student(
            student,
            OBJECTIVES[options["objective"]],
            rows,
            config,
            checkpoints=Path(folder),
            vocabulary_size=vocabulary,
            source=source,
        )


if __name__ == "__main__":
    main()
