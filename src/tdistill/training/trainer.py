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
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from tdistill.core import masked_sum
from tdistill.evidence.batch import Batch, Counts
from tdistill.evidence.collator import Item
from tdistill.evidence.rows import Row
from tdistill.models.generation import seed_of
from tdistill.models.language_model import inner_model
from tdistill.models.layout import Layout
from tdistill.models.negatives import Negatives, Occurrences, draw_negatives
from tdistill.models.row_trials import check_reading, shares_prompts
from tdistill.models.score_forms import StepScores
from tdistill.models.scores import check_head, step_scores
from tdistill.models.set_scores import SetScores
from tdistill.processes import gathered, process_count
from tdistill.teacher.cache.cached_rows import take_rows
from tdistill.teacher.source import LiveTeacher
from tdistill.training.arguments import check_launch
from tdistill.training.beside import Beside
from tdistill.training.config import TrainConfig
from tdistill.training.diagnostics import Diagnostics
from tdistill.training.divergence import refuse_non_finite, refuse_non_finite_weights
from tdistill.training.mixing import EvidenceMix, own_parts
from tdistill.training.objectives import Objective
from tdistill.training.row_gradient import RowGradient, sparse_gradient
from tdistill.training.sampling import MicroBatches, Order, prompt_order, uniform_order
from tdistill.training.sharded import expose_head


class RowDataset(Dataset):
    """Rows with their index, so that what a row is paired with does not depend on the order."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Row]:
        return index, self.rows[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Row]]:
        """Those of a batch; rows of a cache are decoded together."""
        return list(zip(indices, take_rows(self.rows, indices), strict=True))


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
        check_launch(self, objective, config)
        self.objective, self.config = objective, config
        self.vocabulary_size, self.live_teacher = vocabulary_size, live_teacher
        self.beside = Beside(model, objective, device=self.args.device, reduce=self._over_processes)
        self.add_callback(self.beside)
        self.diagnostics = Diagnostics(by_source=mix is not None)
        self._rows: RowGradient | None = None
        self._negatives: Negatives | None = None  # of the present update
        self._loss = torch.zeros((), device=self.args.device)  # of the present update
        self._clock = time.perf_counter()
        # Before the network is wrapped: what it allows is tried once and remembered.
        check_reading(model)
        check_head(model, vocabulary_size=vocabulary_size, head=config.head)
        if config.share_prefix:
            readers: list[nn.Module] = [model]
            if live_teacher is not None and objective.needs_live_teacher:
                readers.append(live_teacher.teacher.model)
            if not all(shares_prompts(network) for network in readers):
                collator: Any = self.data_collator
                self.data_collator = replace(collator, share_prefix=False)

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

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's wrapping of the network."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        expose_head(self)
        return prepared

    def get_train_dataloader(self) -> DataLoader:
        """Lists of batches of this process; of rows of all where others are to be mixed in."""
        config, data, collator = self.config, self.train_dataset, self.data_collator
        part, parts = (self.args.process_index, process_count()) if self.mix is None else (0, 1)
        return DataLoader(
            data,  # pyright: ignore[reportArgumentType]
            batch_sampler=MicroBatches(
                self._order(),
                updates=config.steps,
                batch_size=config.batch_size,
                accumulation=config.gradient_accumulation,
                part=part,
                parts=parts,
            ),
            collate_fn=list if self.mix is not None else collator.batches,  # pyright: ignore
            num_workers=config.loader_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # the network's own draws do not depend on it
        )

    def _order(self) -> Order:
        data: Any = self.train_dataset
        seed = self.config.seed
        share = self.config.share_prefix
        return prompt_order(data.rows, seed) if share else uniform_order(len(data), seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[list[Batch]], Any]:
        """The micro-batches of one update, each in parts, and their counts."""
        self._loss = torch.zeros_like(self._loss)
        drawn = list(itertools.islice(epoch_iterator, num_batches))
        if not drawn:
            return [], None
        batches = drawn if self.mix is None else self._mixed(drawn, self.mix)
        parts = [batch for parts in batches for batch in parts]
        self._negatives = self._drawn_negatives(parts)
        return batches, self._get_num_items_in_batch(parts, device)

    def _mixed(self, drawn: list[list[Item]], mix: EvidenceMix) -> list[list[Batch]]:
        """This process's batches of an update, other rows mixed into those of all."""
        update, collator = self.state.global_step, self.data_collator
        mix.refresh(update)
        items = mix.mix(mix.keep(list(itertools.chain(*drawn))), update=update)
        own = own_parts(
            items,
            accumulation=len(drawn),
            process=self.args.process_index,
            processes=process_count(),
        )
        return [collator.batches(part) for part in own]  # pyright: ignore

    def _drawn_negatives(self, batches: list[Batch]) -> Negatives | None:
        """What all steps of an update, on whatever process, share of the vocabulary."""
        count, seed = self.objective.sampled_negatives, self.config.seed
        if count is None:
            return None
        found = Occurrences.total([Occurrences.of(batch.sets.ids.cpu()) for batch in batches])
        found = Occurrences.total(gathered(found))
        generator = torch.Generator()
        generator.manual_seed(seed_of("negatives", seed, self.state.global_step))
        drawn = draw_negatives(found, self.vocabulary_size, count, generator)
        return drawn.to(self.args.device)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """A backward pass for each part of a micro-batch; devices average after the last."""
        losses = []
        for number, part in enumerate(inputs, 1):
            last = number == len(inputs)
            rows = nullcontext() if self._rows is None else self._rows.collecting()
            with rows, nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        loss = torch.stack(losses).sum()
        self._loss += loss.detach()
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm; the last look at an update before it is made."""
        norm: Any = super()._get_grad_norm(model, grad_norm)
        skips = self.accelerator.scaler is not None  # float16: such an update is left out
        refuse_non_finite(
            self.objective.name,
            self.state.global_step + 1,
            float(self._over_processes(self._loss, "mean")),
            0.0 if skips else float(norm),
            learning_rate=self._get_learning_rate(),
            checkpoints=Path(self.args.output_dir or "."),
        )
        return norm

    def _save_rng_state(self, output_dir: str) -> None:
        """The last file of every process; then the first one marks the checkpoint as whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint of numbers alone."""
        refuse_non_finite_weights(self.objective.name, self.state.global_step, model)
        super()._save_checkpoint(model, trial)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """A batch moves as a whole."""
        return inputs.to(self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:
        """Of all parts of a micro-batch."""
        tokens = [{"input_ids": part.layout.input_ids} for part in inputs]
        return sum(super(DistillTrainer, self).floating_point_ops(part) for part in tokens)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sum of the step losses over the counts of the whole (accumulated, global) batch."""
        batch: Batch = inputs
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([batch], batch.action.device)
        counts: Counts = num_items_in_batch
        # Weights are touched inside the wrapped module's forward, or DDP averages no gradients.
        # The Trainer's own autocast sits on the model's forward, which the redirection replaces.
        with self.accelerator.autocast():
            step_sum, critic_sum, text_sum = _redirect_forward(
                model, self.model, self._losses, batch, counts
            )
        steps = counts.steps.clamp(min=1)
        loss = step_sum / steps
        if critic_sum is not None:  # its gradient alone: what is logged is the student's loss
            loss = loss + (critic_sum - critic_sum.detach()) / steps
        if text_sum is not None:
            loss = loss + self.objective.lm_weight * text_sum / counts.text_tokens.clamp(min=1)
        loss = loss * self.accelerator.num_processes  # undoes the mean over devices
        return (loss, {}) if return_outputs else loss

    def _losses(
        self, model: nn.Module, batch: Batch, counts: Counts
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Sums of the losses of steps, critic and text."""
        student = self._scores(model, batch)
        teacher = None
        if self.live_teacher is not None and self.objective.needs_live_teacher:
            teacher = self.live_teacher.scores(batch.layout)
        clock = {"update": self.state.global_step, "updates": self.config.steps}
        views = self.beside.views(
            student, batch, teacher=teacher, scores=self._scores, counts=counts, **clock
        )
        result = self.objective.loss(views, batch)
        self.beside.observe(result)
        self.diagnostics.observe(student, batch, result)
        step_sum = masked_sum(result.loss, batch.trained).total
        critic_sum = None
        if result.critic is not None:
            critic_sum = masked_sum(result.critic, batch.trained).total
        text_sum = None if batch.text_ids is None else self._text_loss(model, batch.text_ids)
        return step_sum, critic_sum, text_sum

    def _scores(self, model: nn.Module, batch: Batch) -> SetScores:
        scores = self._step_scores(model, batch.layout)
        return SetScores(
            scores,
            batch.sets,
            batch.action,
            chunk_size=self.config.chunk_size,
            negatives=self._negatives,
        )

    def _step_scores(self, model: nn.Module, layout: Layout) -> StepScores:
        return step_scores(
            model, layout, vocabulary_size=self.vocabulary_size, head=self.config.head
        )

    def _text_loss(self, model: nn.Module, text: Tensor) -> Tensor:
        row, position = torch.ones_like(text[:, 1:]).nonzero().unbind(1)
        scores = self._step_scores(model, Layout(text, torch.ones_like(text), row, position))
        normaliser = scores.log_normaliser(chunk_size=self.config.chunk_size)
        chosen = scores.at(text[row, position + 1], torch.arange(len(row), device=text.device))
        losses = normaliser - chosen
        self.diagnostics.add("text_loss", losses, torch.ones_like(losses, dtype=torch.bool))
        return losses.sum()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the interval to what the Trainer logs."""
        if "loss" in logs:
            means, steps = self.diagnostics.take(gathered)
            now = time.perf_counter()
            logs |= means | {"tokens_per_second": steps / max(now - self._clock, 1e-9)}
            self._clock = now
            if self.mix is not None and self.mix.sampler is not None:
                logs |= self.mix.buffer.report(self.state.global_step)
                logs["sampled_tokens"] = float(self.mix.buffer.sampled_tokens)
        super().log(logs, *args, **kwargs)

    def _over_processes(self, values: Tensor, reduction: str) -> Tensor:
        reduced: Any = self.accelerator.reduce(values, reduction=reduction)
        return reduced

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Counts of the whole update, over all micro-batches and devices."""
        total = torch.stack([torch.stack(batch.counts) for batch in batch_samples]).sum(0)
        total = self._over_processes(total.to(device), "sum")
        return Counts(*total)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["index", "row"]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.beside.save(Path(output_dir))
            if self.mix is not None:
                self.mix.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.beside.load(Path(checkpoint))
        if self.mix is not None and checkpoint is not None:
            self.mix.load(Path(checkpoint))


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
