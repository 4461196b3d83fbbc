"""The training loop: ``transformers.Trainer`` with the loss of an objective in it.

The loop, mixed precision, DDP, FSDP, DeepSpeed, PEFT, reporting and exact resume are the Trainer's.
The trainer knows no objective by name.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from tdistill.core import WeightedSum, implied_reward, masked_sum, project, set_forward_kl
from tdistill.core import successor as successor_of
from tdistill.errors import InvalidValueError
from tdistill.evidence.batch import Batch
from tdistill.evidence.rows import ROW_SOURCES, Row
from tdistill.models.language_model import inner_model
from tdistill.models.scores import check_head, shares_prompts, step_scores
from tdistill.teacher.source import LiveTeacher
from tdistill.training.config import TrainConfig
from tdistill.training.mixing import EvidenceMix
from tdistill.training.objectives import Objective, Views
from tdistill.training.row_gradient import RowGradient, sparse_gradient
from tdistill.training.sampling import PromptSampler
from tdistill.training.target import TargetNetwork
from tdistill.training.view import ModelView

_NEED_SUCCESSOR = ("implied_reward", "nonlinear", "td_error")  # mean nothing without V(s')


class RowDataset(Dataset):
    """Rows with their index, so that what a row is paired with does not depend on the order."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Row]:
        return index, self.rows[index]


class DistillTrainer(Trainer):
    """Trains a student by an objective on batches of teacher evidence.

    Args:
        model: the student network.
        objective: what is minimised.
        config: settings; must agree with ``args``.
        vocabulary_size: tokens shared by teacher and student.
        live_teacher: the teacher, for objectives that need its full distribution.
        mix: gives a share of every batch to other rows; None leaves batches as drawn.
        **kwargs: to ``transformers.Trainer`` (args, train_dataset, data_collator, callbacks).
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the counts of the whole batch

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: Objective,
        config: TrainConfig,
        vocabulary_size: int,
        live_teacher: LiveTeacher | None = None,
        mix: EvidenceMix | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, **kwargs)
        self.mix = mix
        if mix is not None and mix.sampler is not None:
            _check_whole_weights(self)
        if config.tokens_per_forward is not None:
            _check_free_passes(self)
        self.objective, self.config = objective, config
        self.vocabulary_size, self.live_teacher = vocabulary_size, live_teacher
        decay = objective.target_network
        self.target = None if decay is None else TargetNetwork(model, decay)
        if self.target is not None:
            self.add_callback(_UpdateTarget(self.target))
        self._sums: dict[str, WeightedSum] = {}
        self._rows: RowGradient | None = None
        self._clock = time.perf_counter()
        check_head(model, vocabulary_size=vocabulary_size, head=config.head)
        if config.share_prefix:
            readers: list[nn.Module] = [model]
            if live_teacher is not None and objective.needs_live_teacher:
                readers.append(live_teacher.teacher.model)
            if not all(shares_prompts(network) for network in readers):
                collator: Any = self.data_collator
                self.data_collator = replace(collator, share_prefix=False)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """The Trainer's uniform order, or that of whole prompts."""
        if not self.config.share_prefix:
            return super()._get_train_sampler(train_dataset)
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        return PromptSampler(dataset.rows, self.config.seed)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's loop, with the embedding's gradient at the cost of the batch's tokens."""
        # Processes that average or shard gradients expect dense ones from autograd.
        alone = self.accelerator.num_processes == 1 and not (
            self.is_fsdp_enabled or self.is_deepspeed_enabled
        )
        embedding = inner_model(self.model).get_input_embeddings() if alone else None
        with sparse_gradient(embedding) as self._rows:
            result = super().train(*args, **kwargs)
        self._rows = None
        return result

    def get_train_dataloader(self) -> DataLoader:
        """Batches of rows: they become tensors only when it is known whose rows they hold."""
        collator, self.data_collator = self.data_collator, list
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """The micro-batches of one update, other rows mixed in, in parts, and their counts."""
        drawn: list[Any] = list(itertools.islice(epoch_iterator, num_batches))
        update = self.state.global_step
        if self.mix is not None:
            self.mix.refresh(update)
            parts = self.args.gradient_accumulation_steps
            drawn = [
                self.mix.mix(items, update=update, part=i, parts=parts)
                for i, items in enumerate(drawn)
            ]
        collator: Any = self.data_collator
        batches = [[collator(part) for part in collator.parts(items)] for items in drawn]
        if not batches:
            return [], None
        counts = self._get_num_items_in_batch([b for parts in batches for b in parts], device)
        return [{"parts": parts} for parts in batches], counts

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """A backward pass for each part of a micro-batch; devices average after the last."""
        parts = inputs["parts"]
        losses = []
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            rows = nullcontext() if self._rows is None else self._rows.collecting()
            with rows, nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of all parts of a micro-batch."""
        return sum(super(DistillTrainer, self).floating_point_ops(p) for p in inputs["parts"])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sum of the step losses over the counts of the whole (accumulated, global) batch."""
        batch = Batch(**inputs)
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], batch.action.device)
        steps, text_tokens = num_items_in_batch.clamp(min=1)
        # Weights are touched inside the wrapped module's forward, or DDP averages no gradients.
        # The Trainer's own autocast sits on the model's forward, which the redirection replaces.
        with self.accelerator.autocast():
            step_sum, text_sum = _redirect_forward(model, self.model, self._losses, batch)
        loss = step_sum / steps
        if text_sum is not None:
            loss = loss + self.objective.lm_weight * text_sum / text_tokens
        loss = loss * self.accelerator.num_processes  # undoes the mean over devices
        return (loss, {}) if return_outputs else loss

    def _losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        student = self._view(model, batch)
        teacher = None
        if self.live_teacher is not None and self.objective.needs_live_teacher:
            teacher = self.live_teacher.scores(*batch.layout)
        target = None
        if self.target is not None:
            with torch.no_grad():
                target = self._view(self.target.model, batch)
        result = self.objective.loss(Views(student, teacher, target), batch)
        self._observe(student, batch, result.loss, result.parts)
        text_sum = None if batch.text_ids is None else self._text_loss(model, batch.text_ids)
        return masked_sum(result.loss, batch.trained).total, text_sum

    def _view(self, model: nn.Module, batch: Batch) -> ModelView:
        scores = step_scores(
            model, *batch.layout, vocabulary_size=self.vocabulary_size, head=self.config.head
        )
        return ModelView(scores, batch, chunk_size=self.config.chunk_size)

    def _text_loss(self, model: nn.Module, text: Tensor) -> Tensor:
        row, position = torch.ones_like(text[:, 1:]).nonzero().unbind(1)
        scores = step_scores(
            model,
            text,
            torch.ones_like(text),
            row,
            position,
            vocabulary_size=self.vocabulary_size,
            head=self.config.head,
        )
        normaliser = scores.log_normaliser(chunk_size=self.config.chunk_size)
        chosen = scores.at(text[row, position + 1], torch.arange(len(row), device=text.device))
        losses = normaliser - chosen
        self._add("text_loss", losses.detach(), torch.ones_like(losses, dtype=torch.bool))
        return losses.sum()

    @torch.no_grad()
    def _observe(self, student: ModelView, batch: Batch, loss: Tensor, parts: Any) -> None:
        """Add this batch's diagnostics to the sums of the current logging interval."""
        self._add("step_loss", loss, batch.trained)
        blank = 1 - batch.attention_mask.flatten()
        self._add("padding", blank, torch.ones_like(blank, dtype=torch.bool))
        for source, rows in self._row_sources(batch):
            self._add(f"step_loss.{source}", loss, batch.trained & rows)
        if batch.has_sets:
            self._add("out_of_set", batch.out_of_set.float(), torch.ones_like(batch.trained))
            shown = {**self._set_diagnostics(student, batch), **parts}
            for name, values in shown.items():
                needs_next = name in _NEED_SUCCESSOR
                mask = batch.trained & batch.can_bootstrap if needs_next else batch.trained
                self._add(name, values.detach(), mask)
                for source, rows in self._row_sources(batch):
                    self._add(f"{name}.{source}", values.detach(), mask & rows)
            leak, steps = student.leak()
            self._add("leak", leak, batch.trained[steps])
            for source, rows in self._row_sources(batch):
                self._add(f"leak.{source}", leak, (batch.trained & rows)[steps])

    def _row_sources(self, batch: Batch) -> list[tuple[str, Tensor]]:
        """Who wrote the rows of a batch, and their steps, where there can be several."""
        if self.mix is None:
            return []
        of_step = batch.source[batch.row]
        return [(ROW_SOURCES[s], of_step == s) for s in batch.source.unique().tolist()]

    def _set_diagnostics(self, student: ModelView, batch: Batch) -> dict[str, Tensor]:
        value = student.set_value
        log_policy = project(student.on_set, batch.set_offsets)
        following = successor_of(value, batch.has_successor)
        return {
            "value": value,
            "implied_reward": implied_reward(student.action, following, batch.discount),
            "set_kl": set_forward_kl(batch.set_log_probs, log_policy, batch.set_offsets),
        }

    def _add(self, name: str, values: Tensor, mask: Tensor) -> None:
        pair = masked_sum(values.detach().float(), mask)
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the interval to what the Trainer logs."""
        if self._sums and "loss" in logs:
            names = sorted(self._sums)
            sums = [self._sums[name] for name in names]
            pairs = torch.stack([torch.stack([s.total, s.weight]) for s in sums])
            totals: Any = self.accelerator.reduce(pairs, reduction="sum")
            logs |= {n: float(t / w) for n, (t, w) in zip(names, totals, strict=True) if w > 0}
            now = time.perf_counter()
            steps = float(totals[names.index("step_loss"), 1])
            logs["tokens_per_second"] = steps / max(now - self._clock, 1e-9)
            self._sums, self._clock = {}, now
            if self.mix is not None:
                logs |= self.mix.buffer.report(self.state.global_step)
        super().log(logs, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Trained steps and text tokens of the whole batch, over all micro-batches and devices."""
        counts = [
            torch.stack(
                [b["trained"].sum(), torch.tensor(_text_targets(b), device=b["trained"].device)]
            )
            for b in batch_samples
        ]
        total = torch.stack(counts).sum(0).to(device)
        if self.accelerator.num_processes > 1:
            gathered: Any = self.accelerator.gather(total[None])
            total = gathered.sum(0)
        return total

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["index", "row"]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.target is not None and self.args.should_save:
            self.target.save(Path(output_dir))
        if self.mix is not None:
            self.mix.save(Path(output_dir), self.args.process_index)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.target is not None and checkpoint is not None:
            self.target.load(Path(checkpoint))
        if self.mix is not None and checkpoint is not None:
            self.mix.load(Path(checkpoint), self.args.process_index)


def _check_whole_weights(trainer: Trainer) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InvalidValueError(
            "student_share: expected the student's whole weights in every process, to sample from, "
            "found a sharded run (FSDP or DeepSpeed); use plain data parallelism, or a share of 0"
        )


def _check_free_passes(trainer: Trainer) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InvalidValueError(
            "training.tokens_per_forward: expected processes that may differ in their number of "
            "forward passes, found a sharded run (FSDP or DeepSpeed); use plain data parallelism, "
            "or gradient_accumulation"
        )


class _UpdateTarget(TrainerCallback):
    def __init__(self, target: TargetNetwork) -> None:
        self.target = target

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the averaged copy towards the student after every update."""
        self.target.update(kwargs["model"])


def training_arguments(config: TrainConfig, folder: Path) -> TrainingArguments:
    """The Trainer's arguments for a configuration.

    Args:
        config: settings.
        folder: where checkpoints go.
    """
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size // config.gradient_accumulation,
        gradient_accumulation_steps=config.gradient_accumulation,
        optim="adamw_torch_fused",
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type=config.scheduler,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        data_seed=config.seed,
        bf16=config.bf16,
        use_cpu=not torch.cuda.is_available(),
        activation_checkpointing=config.gradient_checkpointing,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_steps=config.logging_steps,
        report_to=list(config.report_to),
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def _redirect_forward(wrapper: nn.Module, module: Any, function: Any, *args: Any) -> Any:
    """Run ``function(module, *args)`` inside ``wrapper``'s forward (DDP and FSDP hooks)."""
    original = module.forward

    def once(*inner: Any) -> Any:
        module.forward = original
        return function(module, *inner)

    module.forward = once
    try:
        return wrapper(*args)
    finally:
        module.forward = original


def _text_targets(batch: dict[str, Tensor]) -> int:
    text = batch.get("text_ids")
    return 0 if text is None else text.shape[0] * (text.shape[1] - 1)
