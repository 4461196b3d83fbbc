"""Render prompts as text, up to where the response begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdistill.data.config import Format, Template
from tdistill.data.formats import Instruction, Message, Prompt, PromptRecord
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
_PROBE = "PROBE"


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


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    record: PromptRecord,
    system: str | None = None,
) -> str:
    """The text of a prompt, up to where the response begins.

    ``plain`` leaves a text prompt as it stands, ends an instruction (or the only user turn) with a
    line feed, and puts a system message on a line of its own before it.

    Args:
        tokenizer: its chat template is used for ``chat``.
        template: ``chat``, ``alpaca`` or ``plain``.
        record: the row.
        system: system message for rows without one; ``chat`` and ``plain`` use it.

    Returns:
        The rendered prompt.

    Raises:
        DataError: several turns and no chat template, or a chat template that refuses the row.
    """
    prompt = record.prompt
    if template == "chat":
        turns = _as_turns(prompt, system)
        return _apply(tokenizer, turns, record.where, add_generation_prompt=True)
    if template == "alpaca":
        roles = (["user"],)
        task = prompt if isinstance(prompt, Instruction) else Instruction(_only(record, roles)[1])
        form = ALPACA_WITH_INPUT if task.input.strip() else ALPACA
        return form.format(instruction=task.instruction, input=task.input)
    if isinstance(prompt, str):
        return f"{system}\n{prompt}" if system else prompt
    own_system, text = _only(record, (["user"], ["system", "user"]))
    return "".join(f"{part}\n" for part in (own_system or system, text) if part)


def is_blank(prompt: Prompt) -> bool:
    """Whether a prompt has nothing to answer: no text but white space, or no user turn with any."""
    if isinstance(prompt, Instruction):
        return not (prompt.instruction.strip() or prompt.input.strip())
    if isinstance(prompt, str):
        return not prompt.strip()
    return not any(turn["content"].strip() for turn in prompt if turn["role"] != "system")


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, record: PromptRecord, system: str | None = None
) -> str:
    """The chat template's own text of a row with its first reference as the assistant's turn."""
    answer: Message = {"role": "assistant", "content": record.references[0]}
    turns = [*_as_turns(record.prompt, system), answer]
    return _apply(tokenizer, turns, record.where, add_generation_prompt=False)


def strips_response(tokenizer: PreTrainedTokenizerBase, template: Template) -> bool:
    """Whether the template takes white space off both ends of a response."""
    if template != "chat":
        return False
    lead, tail = around_response(tokenizer)
    return not lead.endswith("\t") and not tail.startswith("\t")


def _as_turns(prompt: Prompt, system: str | None) -> list[Message]:
    if isinstance(prompt, tuple):
        turns = list(prompt)
    elif isinstance(prompt, str):
        turns = [{"role": "user", "content": prompt}]
    else:
        parts = [part for part in (prompt.instruction, prompt.input) if part.strip()]
        turns = [{"role": "user", "content": "\n\n".join(parts)}]
    # An empty message is a choice too: it keeps a template from putting in its own.
    if system is not None and not any(turn["role"] == "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": system})
    return turns


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


def around_response(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template puts around a response that is written with a tab at each end."""
    turns = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": f"\t{_PROBE}\t"},
    ]
    text = _apply(tokenizer, turns, "data.template", add_generation_prompt=False)
    lead, found, tail = text.rpartition(_PROBE)
    if not found:
        raise DataError(
            "data.template: expected a chat template that writes the assistant's text; "
            f"found one that leaves it out: {text!r}. Set another tokenizer.chat_template."
        )
    return lead, tail


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[Message],
    where: str,
    *,
    add_generation_prompt: bool,
) -> str:
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except TemplateError as error:
        raise DataError(
            f"{where}: expected turns that the chat template accepts; found turns of "
            f"{', '.join(turn['role'] for turn in turns)} ({error}). "
            "Change the row, or set data.system to null if the template takes no system message."
        ) from error
