"""TRL's DistillationTrainer: the student generates, the teacher in memory scores, chunked loss."""

from __future__ import annotations

import tempfile

import torch
from benchmarks.speed.protocol import Channel
from benchmarks.speed.workers.gate import ARGUMENTS, Gate, load_rows, settle
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DistillationConfig, DistillationTrainer


def main() -> None:
    channel = Channel()
    options = channel.options
    tokenizer = AutoTokenizer.from_pretrained(options["teacher"], padding_side="left")
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(options[name], dtype=torch.float32)
        for name in ("teacher", "student")
    )
    bare = settle(teacher, student)
    rows = load_rows(options["rows"])
    prompts = [{"prompt": row["prompt"]} for row in rows]

    def tokens() -> dict[str, float]:
        """Response tokens of the update: the trainer's own count of what it generated."""
        lengths = trainer._metrics["train"]["completions/mean_length"]
        return {"tokens": lengths[-1] * len(rows)}

    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            output_dir=folder,
            per_device_train_batch_size=len(rows),
            use_cpu=not torch.cuda.is_available(),
            max_completion_length=max(len(row["response_ids"]) for row in rows),
            **ARGUMENTS,
        )
        trainer = DistillationTrainer(
            student,
            teacher_model=teacher,
            args=config,
            train_dataset=Dataset.from_list(prompts),
            processing_class=tokenizer,
            callbacks=[Gate(channel, bare, tokens)],
        )
        trainer.train()


if __name__ == "__main__":
    main()
