"""Which template renders a prompt, and those that are not a tokenizer's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdistill.data.config import Format, Template
from tdistill.data.formats import Instruction, Prompt, PromptRecord
from tdistill.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def resolve_template(
    tokenizer: PreTrainedTokenizerBase, template: Template, format: Format
) -> Template:
    """Put a name in the place of ``auto``.

    Args:
        tokenizer: asked for a chat template.
        template: ``data.template``.
        format: the format of the source, not ``auto``.

    Returns:
        ``chat``, ``alpaca`` or ``plain``.

    Raises:
        DataError: ``chat`` is wanted and the tokenizer has no chat template.
    """
    has_chat = bool(tokenizer.chat_template)
    if template == "chat" and not has_chat:
        raise DataError(
            "data.template: expected a tokenizer with a chat template for chat; found one "
            f"without ({tokenizer.name_or_path or 'unnamed'}). Use alpaca, plain or auto."
        )
    if template != "auto":
        return template
    if has_chat:
        return "chat"
    return "alpaca" if format == "instruction" else "plain"


def render_prompt(template: Template, record: PromptRecord, system: str | None = None) -> str:
    """The text of a prompt, up to where the response begins, without a chat template.

    ``plain`` leaves a text prompt as it stands, ends an instruction (or the only user turn) with a
    line feed, and puts a system message on a line of its own before it.

    Args:
        template: ``alpaca`` or ``plain``.
        record: the row.
        system: system message for rows without one; ``plain`` uses it.

    Returns:
        The rendered prompt.

    Raises:
        DataError: several turns, or tools.
    """
    prompt = record.prompt
    if record.tools:
        raise DataError(
            f"{record.where}: expected a row without tools, which only a chat template can write; "
            "found some. Use a tokenizer with a chat template, or leave the column out."
        )
    if template == "alpaca":
        roles = (["user"],)
        task = prompt if isinstance(prompt, Instruction) else Instruction(_only(record, roles)[1])
        form = ALPACA_WITH_INPUT if task.input.strip() else ALPACA
        return form.format(instruction=task.instruction, input=task.input)
    own = record.system if record.system is not None else system
    if isinstance(prompt, str):
        return f"{own}\n{prompt}" if own else prompt
    turn, text = _only(record, (["user"], ["system", "user"]))
    return "".join(f"{part}\n" for part in (turn or own, text) if part)


def is_blank(prompt: Prompt) -> bool:
    """Whether a prompt has nothing to answer: no text but white space, or no user turn with any."""
    if isinstance(prompt, Instruction):
        return not (prompt.instruction.strip() or prompt.input.strip())
    if isinstance(prompt, str):
        return not prompt.strip()
    asked = (turn for turn in prompt if turn["role"] not in ("system", "developer"))
    return not any(turn.get("content", "").strip() or turn.get("tool_calls") for turn in asked)


def _only(record: PromptRecord, allowed: tuple[list[str], ...]) -> tuple[str | None, str]:
    """System message and text of a prompt that has one user turn and no turn but those allowed."""
    prompt = record.prompt
    if isinstance(prompt, str):
        return None, prompt
    if isinstance(prompt, Instruction):
        return None, "\n".join(part for part in (prompt.instruction, prompt.input) if part.strip())
    roles = [turn["role"] for turn in prompt]
    if roles not in allowed:
        raise DataError(
            f"{record.where}: expected turns of {' or '.join(map(', '.join, allowed))}, all that "
            f"the template in use can render; found turns of {', '.join(roles)}. "
            "Use a tokenizer with a chat template, or set tokenizer.chat_template."
        )
    return (prompt[0]["content"] if len(roles) > 1 else None), prompt[-1]["content"]
