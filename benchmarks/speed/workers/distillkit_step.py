"""DistillKit's loss on its own cache in transformers' Trainer: full student logits, no teacher."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from benchmarks.speed.protocol import Channel
from benchmarks.speed.workers.gate import ARGUMENTS, Gate, load_rows, settle
from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor
from distillkit.lossfuncs import KLDLoss
from distillkit.signals import OfflineSignalSource
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


class Packed(Dataset):
    """Rows with their compressed evidence; labels are shifted to the positions that predict."""

    def __init__(self, rows: list[dict[str, Any]], cache: Any) -> None:
        self.rows = rows
        self.cache = {name: torch.from_numpy(cache[name]) for name in cache.files}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        prompt, response = self.rows[index]["prompt_ids"], self.rows[index]["response_ids"]
        labels = [-100] * (len(prompt) - 1) + response + [-100]
        fields = {name: tensor[index] for name, tensor in self.cache.items()}
        return {
            "input_ids": torch.tensor(prompt + response),
            "labels": torch.tensor(labels),
            **fields,
        }


class SparseTrainer(Trainer):
    """The step of DistillKit's trainer with its KL loss alone."""

    signal: OfflineSignalSource
    kl: KLDLoss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        outputs = model(input_ids=inputs["input_ids"])
        mask = (inputs["labels"] >= 0).unsqueeze(-1)
        return self.kl(outputs, self.signal.get_signal(inputs), mask=mask)


def main() -> None:
    channel = Channel()
    options = channel.options
    student = AutoModelForCausalLM.from_pretrained(options["student"], dtype=torch.float32)
    bare = settle(student)
    rows = load_rows(options["rows"])
    compressor = LogprobCompressor(config=DistributionQuantizationConfig(**options["setting"]))
    tokens = sum(len(row["response_ids"]) for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SparseTrainer(
            student,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=len(rows),
                use_cpu=not torch.cuda.is_available(),
                remove_unused_columns=False,
                **ARGUMENTS,
            ),
            train_dataset=Packed(rows, np.load(options["cache"])),
            callbacks=[Gate(channel, bare, lambda: {"tokens": tokens})],
        )
        trainer.signal = OfflineSignalSource(compressor, student.config.vocab_size)
        trainer.kl = KLDLoss(temperature=1.0, sparse_chunk_length=1024)
        trainer.train()


if __name__ == "__main__":
    main()
