"""How a configuration reaches the Trainer, and what cannot be done the way a run was launched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from tdistill.errors import InvalidValueError
from tdistill.processes import process_count
from tdistill.teacher.source import LiveTeacher
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import Objective
from tdistill.training.sharded import is_sharded


def check_launch(trainer: Trainer, objective: Objective, config: TrainConfig) -> None:
    """Refuse what weights in shards, or batches made by other processes, do not allow.

    Raises:
        InvalidValueError: with what to do instead.
    """
    if is_sharded(trainer):
        _check_loading(trainer)
        check_in_shards(objective, config)
    if config.loader_workers > 0:
        _check_evidence_is_stored(trainer)
    if config.normaliser_share < 1.0 and not objective.linear_in_normaliser:
        raise InvalidValueError(
            "training.normaliser_share: expected 1, or an objective whose loss is linear in the "
            f"student's log-normaliser, found {config.normaliser_share} with {objective.name}, "
            "which an estimate would bias; remove it, or take kd (support projected) or "
            "bellman_distill"
        )


def launched_in_shards() -> bool:
    """Whether the launcher's environment asks for FSDP or DeepSpeed."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return any(os.environ.get(name, "").lower() == "true" for name in names)


def check_in_shards(objective: Objective, config: TrainConfig, label: str | None = None) -> None:
    """Refuse what no process can do that has a part of the student's weights.

    Args:
        objective: what is minimised.
        config: of the training.
        label: of the objective, for the message; its name by default.

    Raises:
        InvalidValueError: with what to do instead.
    """
    filters = objective.keep_share < 1.0 and objective.keep_when == "update"
    if objective.uses_student_rows or filters:
        raise InvalidValueError(
            f"{label or objective.name}: student_share, keep_when: expected the student's whole "
            "weights in every process, to sample from or to score rows, found a sharded run (FSDP "
            "or DeepSpeed); use plain data parallelism, or a student_share of 0 and keep_when: "
            "start"
        )
    if config.tokens_per_forward is not None:
        raise InvalidValueError(
            "training.tokens_per_forward: expected processes that may differ in their number of "
            "forward passes, found a sharded run (FSDP or DeepSpeed); use plain data parallelism, "
            "or gradient_accumulation"
        )


def training_arguments(config: TrainConfig, folder: Path) -> TrainingArguments:
    """The Trainer's arguments for a configuration.

    Args:
        config: settings.
        folder: where checkpoints go.

    Raises:
        InvalidValueError: if the processes of the run cannot have equal parts of a micro-batch.
    """
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.rows_of_process(process_count()),
        gradient_accumulation_steps=config.gradient_accumulation,
        optim="adamw_torch_fused",
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup,
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
        dataloader_num_workers=config.loader_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # it would show 0 for a loss that is NaN
        report_to=list(config.report_to),
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    if args.n_gpu > 1:  # several devices and one process: the Trainer would copy the model to each
        args._n_gpu = 1
    return args


def _check_loading(trainer: Trainer) -> None:
    plugin: Any = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.cpu_ram_efficient_loading:
        raise InvalidValueError(
            "FSDP_CPU_RAM_EFFICIENT_LOADING: expected false, found true, with which all processes "
            "but the first load models without weights; set it to false"
        )


def _check_evidence_is_stored(trainer: Trainer) -> None:
    collator: Any = trainer.data_collator
    if isinstance(collator.source, LiveTeacher):
        raise InvalidValueError(
            "training.loader_workers: expected evidence from a cache, which other processes can "
            "read, found the teacher in memory; use 0, or score the rows into a cache first"
        )
