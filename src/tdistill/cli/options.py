"""What several commands share: how given responses are read, and in which precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tdistill.data.config import Format, Template
from tdistill.models.weights import DType

DATA_FIELDS = ("format", "template", "system", "max_prompt_tokens", "max_response_tokens")


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Fields of a command that reads responses with a model."""

    limit: int | None = None
    """Read only the first N rows of the data."""
    format: Format | None = None
    """Which columns of the data to read; likewise the following, as in DataConfig."""
    template: Template | None = None
    """How a prompt is rendered."""
    system: str | None = None
    """System message of rows that bring none."""
    max_prompt_tokens: int | None = None
    """Rows with a longer prompt are left out."""
    max_response_tokens: int | None = None
    """A longer response is cut."""
    dtype: DType = "auto"
    """Precision of the weights; auto: the checkpoint's on CUDA, float32 on a CPU."""


def given_fields(command: Any, names: Sequence[str]) -> dict[str, Any]:
    """The fields of a command that were given, by name."""
    values = {name: getattr(command, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
