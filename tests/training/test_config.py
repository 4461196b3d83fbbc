from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tdistill.errors import InvalidValueError, TdistillError
from tdistill.training.arguments import training_arguments
from tdistill.training.config import LoraConfig, TrainConfig


def test_the_defaults_are_the_papers() -> None:
    config = TrainConfig()
    assert (config.batch_size, config.learning_rate, config.warmup) == (64, 5e-6, 100)
    assert (config.adam_beta1, config.adam_beta2, config.scheduler) == (0.9, 0.95, "cosine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, found 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"gradient_accumulation": 0}, "gradient_accumulation: expected at least 1"),
        ({"save_steps": 0}, "save_steps: expected at least 1"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0, found -1"),
        ({"loader_workers": -1}, "loader_workers: expected at least 0, found -1"),
        ({"chunk_size": 0}, "chunk_size: expected at least 1"),
        ({"batch_size": 6, "gradient_accumulation": 4}, "multiple of gradient_accumulation = 4, f"),
        ({"learning_rate": 0.0}, "learning_rate: expected a value above 0, found 0.0"),
        ({"adam_beta1": 1.0}, r"adam_beta1: expected a value in \[0, 1\), found 1.0"),
        ({"adam_beta2": -0.5}, r"adam_beta2: expected a value in \[0, 1\), found -0.5"),
        ({"weight_decay": -1.0}, "weight_decay: expected a value of at least 0, found -1.0"),
        ({"seed": -1}, "seed: expected a number from 0 to 4294967295, found -1"),
        ({"seed": 1 << 32}, "seed: expected a number from 0 to 4294967295, found 4294967296"),
        ({"text_chunk_tokens": 0}, "text_chunk_tokens: expected at least 1, found 0"),
        ({"logging_steps": 0}, "logging_steps: expected at least 1, found 0"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message) as caught:
        TrainConfig(**changes)
    assert isinstance(caught.value, TdistillError)


@pytest.mark.parametrize("changes", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_impossible_adapters_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=f"^{next(iter(changes))}: expected"):
        LoraConfig(**changes)


def test_every_setting_reaches_the_trainer(tmp_path: Path) -> None:
    config = TrainConfig(
        steps=7,
        batch_size=12,
        gradient_accumulation=3,
        learning_rate=0.25,
        warmup_steps=5,
        scheduler="linear",
        adam_beta1=0.5,
        adam_beta2=0.6,
        weight_decay=0.125,
        max_grad_norm=2.0,
        seed=11,
        bf16=True,
        gradient_checkpointing=True,
        save_steps=4,
        logging_steps=2,
        report_to=("tensorboard",),
        lora=LoraConfig(),
    )
    args = training_arguments(config, tmp_path)
    assert (args.max_steps, args.save_steps, args.logging_steps) == (7, 4, 2)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 12
    assert args.gradient_accumulation_steps == 3
    assert (args.learning_rate, args.warmup_steps, args.lr_scheduler_type) == (0.25, 5, "linear")
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay) == (0.5, 0.6, 0.125)
    assert (args.max_grad_norm, args.seed, args.data_seed) == (2.0, 11, 11)
    assert args.bf16 and args.activation_checkpointing
    assert args.report_to == ["tensorboard"]
    assert Path(args.output_dir or "") == tmp_path
    assert training_arguments(TrainConfig(), tmp_path).report_to == []


def test_configurations_are_read_without_torch() -> None:
    code = (
        "import sys, tdistill.training.config, tdistill.training.objectives as o; "
        "o.BellmanDistill(); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
