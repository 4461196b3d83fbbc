"""TRL's experimental GKDTrainer with lmbda 0: given rows, the teacher in memory, full logits.

``beta`` of the options is its own: .5 by default, 0 is the forward KL.
"""

from __future__ import annotations

import tempfile

import torch
from benchmarks.speed.protocol import Channel
from benchmarks.speed.workers.gate import ARGUMENTS, Gate, load_rows, settle
from benchmarks.speed.workers.held_out import QualityGate
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer


def main() -> None:
    channel = Channel()
    options = channel.options
    tokenizer = AutoTokenizer.from_pretrained(options["teacher"])
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(options[name], dtype=torch.float32)
        for name in ("teacher", "student")
    )
    bare = settle(teacher, student)
    rows = load_rows(options["rows"])
    data = [
        {
            "prompt": row["prompt"],
            "input_ids": row["prompt_ids"] + row["response_ids"],
            "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row["response_ids"]),
        }
        for row in rows
    ]
    tokens = sum(len(row["response_ids"]) for row in rows)
    gate = Gate(channel, bare, lambda: {"tokens": tokens})
    if "held_out" in options:
        gate = QualityGate(channel, bare, student, options["held_out"])
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder,
            per_device_train_batch_size=options.get("batch", len(rows)),
            use_cpu=not torch.cuda.is_available(),
            lmbda=0.0,
            beta=options.get("beta", 0.5),
            max_length=len(data[0]["input_ids"]),
            **ARGUMENTS | {"learning_rate": options.get("learning_rate", 1e-5)},
        )
        trainer = GKDTrainer(
            student,
            teacher_model=teacher,
            args=config,
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            callbacks=[gate],
        )
        trainer.train()


if __name__ == "__main__":
    main()
