"""Eight updates of many objectives, in one process or in several: what must not differ.

``python updates.py FOLDER OUT.pt '{"names": [...], "config": {...}, "stop": N}'``
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from fsdp_on_cpu import allow
from safetensors.torch import load_file
from torch import Tensor

from interrupting import Stop
from tdistill.models.language_model import LanguageModel
from tdistill.processes import is_first_process
from tdistill.teacher.source import LiveTeacher
from tdistill.training.config import ReplayConfig, TrainConfig
from tdistill.training.critic import CRITIC_FILE
from tdistill.training.objectives import (
    KD,
    AnyObjective,
    BellmanDistill,
    CriticConfig,
    Objective,
    ReverseKL,
    SeqKD,
    ValueTiltedKD,
)
from tdistill.training.train import train_student
from tdistill.training.trainer import DistillTrainer
from tiny import VOCABULARY, tokenizer
from world import CAPTURE, inside_rows, live, mixed_rows, student, teacher

TEXT = tuple(tuple((7 * i + 3 * j) % VOCABULARY for j in range(6)) for i in range(5))
REPLAY = ReplayConfig(
    refresh_every=2, rows_per_refresh=7, max_age=5, max_new_tokens=6, batch_size=4
)
CONFIG = TrainConfig(
    steps=8,
    batch_size=8,
    learning_rate=1e-3,
    warmup_steps=1,
    scheduler="constant",
    save_steps=3,
    replay=REPLAY,
)
PLAIN: dict[str, Objective] = {cls.name: cls() for cls in get_args(AnyObjective)}
VARIANTS: dict[str, Objective] = {
    "sampled": BellmanDistill(normaliser="sampled", negatives=16),
    "target": BellmanDistill(successor="target", target_decay=0.6, lm_weight=0.5),
    "online": BellmanDistill(second_term="online", student_share=0.5),
    "likelier": SeqKD(keep_share=0.5, keep_when="update"),
    "references": KD(reference_share=0.25, student_share=0.3),
    "critic": ValueTiltedKD(lm_weight=0.5, critic=CriticConfig(learning_rate=0.5)),
    "mixed sampler": ReverseKL(student_share=0.5, teacher_mix=0.3),
}
OBJECTIVES = PLAIN | VARIANTS
Weights = dict[str, Tensor]


def trained(name: str, folder: Path, config: TrainConfig = CONFIG, **model: Any) -> Weights:
    """The weights of the student and of its critic after a training run, on the CPU."""
    objective = OBJECTIVES[name]
    capture = replace(CAPTURE, tail_samples=8 if objective.needs_tails else 0)
    lm, _ = train_student(
        LanguageModel(student(**model), tokenizer(), "student"),
        objective,
        list(inside_rows(16)),
        config,
        checkpoints=folder,
        vocabulary_size=VOCABULARY,
        source=live(capture),
        live_teacher=LiveTeacher(teacher(), capture),
        references=[replace(row, source="reference") for row in mixed_rows()],
        text=TEXT,
        critic_folder=folder / "critic" if is_first_process() else None,
    )
    kept = folder / "critic" / CRITIC_FILE
    critic = load_file(kept) if kept.exists() else {}
    return dict(lm.model.state_dict()) | {f"critic.{n}": weight for n, weight in critic.items()}


def stop_after(update: int) -> None:
    """End training there, after a checkpoint if one is due."""
    original: Any = DistillTrainer.log

    def log(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        if self.state.global_step == update:
            raise Stop

    DistillTrainer.log = log


def main(words: Sequence[str]) -> None:
    folder, out, wanted = Path(words[0]), Path(words[1]), json.loads(words[2])
    config = replace(CONFIG, **wanted.get("config", {}))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        allow()
    if "stop" in wanted:
        stop_after(wanted["stop"])
    found = {}
    for name in wanted["names"]:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        try:
            found[name] = trained(name, place, config, **wanted.get("model", {}))
        except Stop:
            continue
    if is_first_process():
        torch.save(found, out)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
