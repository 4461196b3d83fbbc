"""Where prompts and responses come from, and how they are turned into tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

from tdistill.errors import RecipeError
from tdistill.strict.kinds import found_text

Format = Literal["auto", "prompt-completion", "messages", "instruction", "text"]
Template = Literal["auto", "chat", "plain", "alpaca"]
TrainedTurns = Literal["last", "all"]
TemplateValue = int | float | bool | str | list[str] | None

AUTO = "auto"  # in place of a source: part of the training source
# What tdistill itself gives to a template, so that nobody else may.
_RESERVED = ("messages", "conversation", "tools", "add_generation_prompt", "chat_template")
_RESERVED += ("tokenize", "continue_final_message", "return_dict", "strftime_now")


@dataclass(frozen=True)
class DataConfig:
    """The ``data`` section of a recipe.

    A source is a file (JSONL, ``.json``, Parquet, CSV, ``.gz``), a pattern of files such as
    ``data/train-*.parquet``, a folder saved by ``datasets.save_to_disk``, ``demo:SPLIT`` (the
    prompts that ship with the package), or ``hub:OWNER/NAME`` (with ``/CONFIGURATION`` and
    ``:SPLIT`` where needed) for a data set of the hub; in a recipe also ``world:NAME``.

    Raises:
        RecipeError: a field has a value that cannot be used.
    """

    train: str = "demo:train"
    """Source of the training prompts."""
    valid: str | None = AUTO
    """Source of the validation prompts; auto: a part of the training prompts, which is then not
    trained on; null: none."""
    test: str = AUTO
    """Source of the test prompts; auto: likewise."""
    limit_train: int | None = None
    """Use only the first N rows."""
    limit_valid: int | None = None
    """Likewise."""
    limit_test: int | None = None
    """Likewise."""
    valid_share: float = 0.05
    """Share of the training source's prompts that valid: auto takes."""
    test_share: float = 0.1
    """Share of the training source's prompts that test: auto takes."""
    split_seed: int = 0
    """Chooses which prompts auto takes."""
    format: Format = "auto"
    """Which columns to read; auto: the only format that the columns fit."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which column serves which role, as in {prompt: query, response: answer}, where the names of
    the columns do not say so."""
    template: Template = "auto"
    """How a prompt is rendered. chat: the tokenizer's chat template; alpaca: the instruction
    template of Stanford Alpaca; plain: the text as it stands. auto: chat where the tokenizer has a
    chat template, else alpaca for instruction rows and plain for the others."""
    template_name: str | None = None
    """Which of a tokenizer's several chat templates; null: its default."""
    template_kwargs: dict[str, TemplateValue] = field(default_factory=dict)
    """Variables of the chat template, as in {enable_thinking: false}, for training prompts,
    rollouts and evaluation alike."""
    clock: str | None = None
    """The moment that a chat template is told when it asks for the date, as in "2026-01-31"; null:
    when the run began, which its folder keeps."""
    system: str | None = None
    """System message of rows that bring none; "" keeps a chat template from putting in its own,
    null lets it."""
    trained_turns: TrainedTurns = "last"
    """Which of the assistant's turns of a conversation are trained on: the last, or all, each after
    what precedes it."""
    max_prompt_tokens: int = 256
    """Rows with a longer prompt are left out and counted."""
    max_response_tokens: int = 256
    """Longest response, the end token included; a longer one is cut and then has no end token."""
    max_boundary_failures: float = 0.05
    """Largest share of rows that the chat template cannot express, or writes otherwise than prompt
    and response; with more of them a run is refused."""
    lm_text: str | None = None
    """Plain text for the language-model stream: a file, a folder of .txt files, a pattern such as
    texts/*.txt, or a source with a text column."""

    def __post_init__(self) -> None:
        """Check the values."""
        kinds = {"format": Format, "template": Template, "trained_turns": TrainedTurns}
        for name, kind in kinds.items():
            allowed = get_args(kind)
            if getattr(self, name) not in allowed:
                raise RecipeError(
                    f"data.{name}: expected one of {', '.join(allowed)}; "
                    f"found {found_text(getattr(self, name))}. Use one of these names."
                )
        limits = ("limit_train", "limit_valid", "limit_test")
        for name in (*limits, "max_prompt_tokens", "max_response_tokens"):
            value = getattr(self, name)
            if value is None and name in limits:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RecipeError(
                    f"data.{name}: expected a whole number of at least 1; found "
                    f"{found_text(value)}. Give a positive number"
                    + (", or null for no limit." if name in limits else ".")
                )
        self._check_shares()
        self._check_template()

    @property
    def split_off(self) -> tuple[str, ...]:
        """The splits that are taken from the training source."""
        return tuple(name for name in ("valid", "test") if getattr(self, name) == AUTO)

    def _check_shares(self) -> None:
        for name in ("valid_share", "test_share", "max_boundary_failures"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise RecipeError(
                    f"data.{name}: expected a share between 0 and 1; found {value}. Give a share."
                )
        if self.train == AUTO:
            raise RecipeError("data.train: expected a source; found auto. Name one.")
        taken = sum(getattr(self, f"{name}_share") for name in self.split_off)
        if taken >= 1.0:
            raise RecipeError(
                f"data.valid_share, data.test_share: expected less than 1 together; found {taken}. "
                "Leave something to train on."
            )

    def _check_template(self) -> None:
        for name in self.template_kwargs:
            if name in _RESERVED or not name.isidentifier():
                raise RecipeError(
                    f"data.template_kwargs: expected variables of the chat template; found {name}, "
                    "which tdistill sets itself or no template can read. Remove it."
                )
        if self.clock is not None:
            try:
                datetime.fromisoformat(self.clock)
            except ValueError as error:
                raise RecipeError(
                    "data.clock: expected a date, with the time if need be, as in 2026-01-31 or "
                    f"2026-01-31T09:30; found {self.clock}. Write it so, in quotes."
                ) from error
