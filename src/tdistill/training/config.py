"""Settings of one training run; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tdistill.checks import check, check_at_least

_MOST_STEPS = 1 << 30  # updates; years of them
LayerRule = Literal["even", "first", "influence", "greedy"]
"""How the layers of a student are chosen: see :mod:`tdistill.training.layer_choice`."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters by peft; merged into the student at the end."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(1, rank=self.rank)
        check("alpha", self.alpha > 0.0, "a value above 0", self.alpha)
        check("dropout", 0.0 <= self.dropout < 1.0, "a value in [0, 1)", self.dropout)


@dataclass(frozen=True)
class ReplayConfig:
    """The student's own responses: when they are made and how long they are used.

    Used by objectives with a ``student_share``; the teacher is then kept in memory to score them.
    """

    refresh_every: int = 8  # updates from one round of responses to the next
    rows_per_refresh: int = 64  # responses a round, over all processes
    max_age: int = 32  # updates after which a response is no longer used
    capacity: int = 1024  # most responses held; the oldest go first
    max_new_tokens: int = 128  # length limit of a response
    # Most tokens that continue a training response, cut at a place drawn anew; null: whole ones.
    branch_tokens: int | None = None
    temperature: float = 1.0  # of sampling
    batch_size: int = 32  # responses sampled together

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(
            1,
            refresh_every=self.refresh_every,
            rows_per_refresh=self.rows_per_refresh,
            capacity=self.capacity,
            max_new_tokens=self.max_new_tokens,
            branch_tokens=self.branch_tokens,
            batch_size=self.batch_size,
        )
        check("temperature", self.temperature > 0.0, "a value above 0", self.temperature)
        least = f"at least refresh_every - 1 = {self.refresh_every - 1}, or batches run dry"
        check("max_age", self.max_age >= self.refresh_every - 1, least, self.max_age)


@dataclass(frozen=True)
class TrainConfig:
    """How a student is trained; the defaults are the paper's where it states them."""

    steps: int = 1000  # optimiser updates
    batch_size: int = 64  # responses an update, over all accumulation steps and all processes
    gradient_accumulation: int = 1  # micro-batches that make up one batch
    # Most tokens of a forward pass, padding included: micro-batches are sorted by length and cut.
    tokens_per_forward: int | None = None
    share_prefix: bool = False  # draw the responses of a prompt together, and compute it once
    learning_rate: float = 5e-6
    warmup_steps: int | None = None  # null: a tenth of the steps, at most 100
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    freeze_embeddings: bool = False  # leave the embedding, and a tied output layer, as they are
    lora: LoraConfig | None = None
    head: Literal["auto", "linear", "full"] = "auto"  # how scores are read from the output layer
    chunk_size: int = 128  # steps whose full logits may exist at once
    # Of the steps: whose log-normaliser is computed, drawn anew each update and weighed by one over
    # the share; for losses that are linear in it.
    normaliser_share: float = 1.0
    kept_logits_mib: int = 0  # full logits that are kept for the backward pass, not computed again
    padding_side: Literal["right", "left"] = "right"
    loader_workers: int = 0  # processes that make batches ahead from a cache; 0: the training one
    text_chunk_tokens: int = 128  # length of a chunk of the language-model stream
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    keep_critic: bool = False  # write the critic of an objective that has one beside its student
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
            text_chunk_tokens=self.text_chunk_tokens,
            logging_steps=self.logging_steps,
            tokens_per_forward=self.tokens_per_forward,
        )
        check("steps", self.steps <= _MOST_STEPS, f"at most {_MOST_STEPS:,}", self.steps)
        check_at_least(
            0,
            loader_workers=self.loader_workers,
            warmup_steps=self.warmup_steps,
            kept_logits_mib=self.kept_logits_mib,
        )
        share = self.normaliser_share
        check("normaliser_share", 0.0 < share <= 1.0, "a value in (0, 1]", share)
        check("learning_rate", self.learning_rate > 0, "a value above 0", self.learning_rate)
        for name in ("adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            check(name, 0.0 <= value < 1.0, "a value in [0, 1)", value)
        check("weight_decay", self.weight_decay >= 0, "a value of at least 0", self.weight_decay)
        check("seed", 0 <= self.seed < 1 << 32, "a number from 0 to 4294967295", self.seed)
        multiple = f"a multiple of gradient_accumulation = {self.gradient_accumulation}"
        whole = self.batch_size % self.gradient_accumulation == 0
        check("batch_size", whole, multiple, self.batch_size)

    def rows_of_process(self, processes: int, *, name: str = "batch_size") -> int:
        """Responses of a micro-batch that each of several processes has.

        Args:
            processes: of the run.
            name: of the field, for the message.

        Raises:
            InvalidValueError: if they cannot be the same for all.

        Example:
            >>> TrainConfig(batch_size=64, gradient_accumulation=2).rows_of_process(8)
            4
        """
        parts = processes * self.gradient_accumulation
        below = self.batch_size // parts * parts
        near = f"{below} or {below + parts}" if below else str(parts)
        expected = (
            f"a multiple of processes x gradient_accumulation = {processes} x "
            f"{self.gradient_accumulation}, so {near}"
        )
        check(name, self.batch_size % parts == 0, expected, self.batch_size)
        return self.batch_size // parts

    @property
    def warmup(self) -> int:
        """Updates until the learning rate is reached.

        Example:
            >>> tuple(TrainConfig(steps=n).warmup for n in (5, 50, 4000))
            (0, 5, 100)
        """
        return min(100, self.steps // 10) if self.warmup_steps is None else self.warmup_steps
