"""Settings of one training run; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tdistill.checks import check, check_at_least


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters by peft; merged into the student at the end."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """How a student is trained; the defaults are the paper's where it states them."""

    steps: int = 1000  # optimiser updates
    batch_size: int = 64  # responses an update (over all accumulation steps, on each device)
    gradient_accumulation: int = 1  # micro-batches that make up one batch
    learning_rate: float = 5e-6
    warmup_steps: int = 100
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    lora: LoraConfig | None = None
    head: Literal["auto", "linear", "full"] = "auto"  # how scores are read from the output layer
    chunk_size: int = 128  # steps whose full logits may exist at once
    padding_side: Literal["right", "left"] = "right"
    text_chunk_tokens: int = 128  # length of a chunk of the language-model stream
    save_steps: int = 200  # a checkpoint to resume from every so many updates
    logging_steps: int = 1
    report_to: tuple[str, ...] = ()  # tensorboard, wandb, trackio, ...

    def __post_init__(self) -> None:
        """Refuse impossible combinations."""
        check_at_least(
            1,
            steps=self.steps,
            batch_size=self.batch_size,
            gradient_accumulation=self.gradient_accumulation,
            save_steps=self.save_steps,
            chunk_size=self.chunk_size,
        )
        check("learning_rate", self.learning_rate > 0, "a value above 0", self.learning_rate)
        multiple = f"a multiple of gradient_accumulation = {self.gradient_accumulation}"
        whole = self.batch_size % self.gradient_accumulation == 0
        check("batch_size", whole, multiple, self.batch_size)
