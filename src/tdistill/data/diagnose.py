"""Count what became of the rows of a source, and show one as it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tdistill.data.config import DataConfig, Template
from tdistill.data.doctor import DoctorReport, ShownRow
from tdistill.data.formats import Instruction, Prompt, PromptRecord, SourceColumns
from tdistill.data.rendering import render_conversation
from tdistill.data.tokens import (
    Example,
    encode_rendered,
    response_end_id,
    spells_special,
    splits_special_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BOUNDARY_ROWS = 32


def diagnose(
    source: str,
    kept: Sequence[tuple[PromptRecord, Example]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    columns: SourceColumns,
    template: Template,
    rows_read: int,
    empty_rows: int,
    long_prompts: int,
) -> DoctorReport:
    """Write the report on a source.

    Args:
        source: as given by the user.
        kept: at least one record with its example.
        tokenizer: the tokenizer of teacher and student.
        config: as given by the user.
        columns: the roles of the columns.
        template: the resolved template, not ``auto``.
        rows_read: rows read; ``empty_rows`` and ``long_prompts`` of them were left out.
        empty_rows: rows with nothing to answer.
        long_prompts: rows with too long a prompt.

    Returns:
        The report.
    """
    examples = [example for _, example in kept]
    answered = [example for example in examples if example.references]
    special = _count_specials(tokenizer, kept)
    checked, equal = 0, 0
    if template == "chat":
        checked, equal = _boundary(tokenizer, kept, config.system)
    notes = (
        *columns.notes,
        *_template_notes(template, config, checked - equal),
        *_special_notes(tokenizer, template, *special),
    )
    end = response_end_id(tokenizer, template)
    prompt_lengths = [len(example.prompt_ids) for example in examples]
    response_lengths = [len(example.reference_ids) for example in answered]
    return DoctorReport(
        source=source,
        format=columns.format,
        template=template,
        roles=columns.roles,
        ignored=columns.ignored,
        notes=notes,
        end_token=_decode(tokenizer, [end]),
        end_id=end,
        rows_read=rows_read,
        rows_kept=len(examples),
        empty_rows=empty_rows,
        long_prompts=long_prompts,
        endless_rows=sum(not example.reference_ended for example in answered),
        without_reference=len(examples) - len(answered),
        duplicate_prompts=len(examples) - len({example.prompt_ids for example in examples}),
        special_in_prompts=special[0],
        special_in_responses=special[1],
        boundary_checked=checked,
        boundary_equal=equal,
        prompt_tokens_mean=sum(prompt_lengths) / len(prompt_lengths),
        prompt_tokens_max=max(prompt_lengths),
        response_tokens_mean=sum(response_lengths) / max(len(response_lengths), 1),
        response_tokens_max=max(response_lengths, default=0),
        sample=_sample(tokenizer, kept),
    )


def _count_specials(
    tokenizer: PreTrainedTokenizerBase, kept: Sequence[tuple[PromptRecord, Example]]
) -> tuple[int, int]:
    """Rows that spell a special token in their own prompt text, and in their response."""
    in_prompts = sum(spells_special(tokenizer, _own_text(record.prompt)) for record, _ in kept)
    in_responses = sum(
        spells_special(tokenizer, record.references[0]) for record, _ in kept if record.references
    )
    return in_prompts, in_responses


def _boundary(
    tokenizer: PreTrainedTokenizerBase,
    kept: Sequence[tuple[PromptRecord, Example]],
    system: str | None,
) -> tuple[int, int]:
    """Rows compared with the chat template's own tokens of the whole conversation, and equal ones.

    Responses that spell a special token differ by design and are not compared.
    """
    checked = equal = 0
    for record, example in kept:
        if checked == _BOUNDARY_ROWS:
            break
        if not record.references or spells_special(tokenizer, record.references[0]):
            continue
        whole = encode_rendered(tokenizer, render_conversation(tokenizer, record, system))
        ours = [*example.prompt_ids, *example.reference_ids]
        checked += 1
        equal += whole[: len(ours)] == ours
    return checked, equal


def _template_notes(template: Template, config: DataConfig, unequal: int) -> list[str]:
    notes: list[str] = []
    if config.system and template == "alpaca":
        notes.append("data.system is not used: the alpaca template has no place for it")
    if unequal:
        notes.append(
            f"{unequal} rows differ from the chat template's own tokens: it rewrites the response "
            "or merges it with its surroundings; the student learns the tokens of the sample"
        )
    return notes


def _special_notes(
    tokenizer: PreTrainedTokenizerBase, template: Template, in_prompts: int, in_responses: int
) -> list[str]:
    splits = splits_special_tokens(tokenizer)
    notes: list[str] = []
    if in_prompts:
        read = "plain text" if template == "alpaca" and splits else "control tokens"
        notes.append(f"{in_prompts} prompts spell a special token: read as {read}")
    if in_responses:
        read = "plain text" if splits else "control tokens: this tokenizer cannot do otherwise"
        notes.append(f"{in_responses} responses spell a special token: read as {read}")
    return notes


def _sample(
    tokenizer: PreTrainedTokenizerBase, kept: Sequence[tuple[PromptRecord, Example]]
) -> ShownRow:
    """The first row with a response, or the first row."""
    record, example = next((pair for pair in kept if pair[1].references), kept[0])
    return ShownRow(
        where=record.where,
        prompt=_decode(tokenizer, example.prompt_ids),
        prompt_tokens=len(example.prompt_ids),
        trained=tuple(_decode(tokenizer, [token]) for token in example.reference_ids),
        ended=example.reference_ended,
    )


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)


def _own_text(prompt: Prompt) -> str:
    """The prompt's text before rendering."""
    if isinstance(prompt, Instruction):
        return f"{prompt.instruction}\n{prompt.input}"
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn["content"] for turn in prompt)
