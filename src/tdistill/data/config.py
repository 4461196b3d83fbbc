"""Where prompts and responses come from, and how they are turned into tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tdistill.errors import RecipeError

Format = Literal["auto", "prompt-completion", "messages", "instruction", "text"]
Template = Literal["auto", "chat", "plain", "alpaca"]


@dataclass(frozen=True)
class DataConfig:
    """The ``data`` section of a recipe.

    A source is a JSONL, ``.json`` or Parquet file, a folder saved by ``datasets.save_to_disk``, or
    ``demo:SPLIT`` (the prompts that ship with the package); in a recipe also ``world:NAME``.

    Attributes:
        train: source of the training prompts; ``valid`` (null: none) and ``test`` likewise.
        limit_train: use only the first N rows; ``limit_valid``, ``limit_test`` likewise.
        format: which columns to read; ``auto`` takes the only format that the columns fit.
        template: how a prompt is rendered. ``chat``: the tokenizer's chat template; ``alpaca``: the
            instruction template of Stanford Alpaca; ``plain``: the text as it stands. ``auto``:
            ``chat`` where the tokenizer has a chat template, else ``alpaca`` for instruction rows
            and ``plain`` for the others.
        system: system message for rows that bring none; "" keeps a chat template from putting in
            its own, null lets it.
        max_prompt_tokens: rows with a longer prompt are left out and counted.
        max_response_tokens: longest response, the end token included; a longer one is cut and then
            has no end token.
        lm_text: plain text for the language-model stream: a file, a folder of ``.txt`` files, a
            pattern such as ``texts/*.txt``, or a source with a ``text`` column.

    Raises:
        RecipeError: a field has a value that cannot be used.
    """

    train: str = "demo:train"
    valid: str | None = "demo:valid"
    test: str = "demo:test"
    limit_train: int | None = None
    limit_valid: int | None = None
    limit_test: int | None = None
    format: Format = "auto"
    template: Template = "auto"
    system: str | None = None
    max_prompt_tokens: int = 256
    max_response_tokens: int = 256
    lm_text: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, allowed in (("format", get_args(Format)), ("template", get_args(Template))):
            if getattr(self, name) not in allowed:
                raise RecipeError(
                    f"data.{name}: expected one of {', '.join(allowed)}; "
                    f"found {getattr(self, name)!r}. Use one of these names."
                )
        limits = ("limit_train", "limit_valid", "limit_test")
        for name in (*limits, "max_prompt_tokens", "max_response_tokens"):
            value = getattr(self, name)
            if value is None and name in limits:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RecipeError(
                    f"data.{name}: expected a whole number of at least 1; found {value!r}. "
                    "Give a positive number"
                    + (", or null for no limit." if name in limits else ".")
                )
