"""How the weights of a model are loaded, and written; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantisation = Literal["8bit", "4bit"]


@dataclass(frozen=True)
class WeightsConfig:
    """Precision and place of weights.

    A checkpoint that is quantised already is loaded as transformers does it by itself.
    """

    dtype: DType = "auto"  # auto: the checkpoint's on CUDA, float32 on a CPU
    # Where accelerate puts the layers: auto, balanced, sequential, or a device; null: one device.
    device_map: str | None = None
    quantise: Quantisation | None = None  # by bitsandbytes, while it is loaded
    attention: str | None = None  # sdpa, eager, flash_attention_2, ...; null: transformers chooses


FLOAT32 = WeightsConfig(dtype="float32")
"""What is trained, and what a teacher on a CPU is."""
