"""What several commands share: fields of the data section that a command line may set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DATA_FIELDS = ("format", "template", "system", "max_prompt_tokens", "max_response_tokens")


def given_fields(command: Any, names: Sequence[str]) -> dict[str, Any]:
    """The fields of a command that were given, by name."""
    values = {name: getattr(command, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
