"""Count what became of the rows of a source, and show one as it is trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tdistill.data.columns import SourceColumns
from tdistill.data.config import DataConfig, Template
from tdistill.data.doctor import DoctorReport, ShownRow
from tdistill.data.formats import Instruction, Prompt, text_of_response
from tdistill.data.making import Outcome
from tdistill.data.token_texts import decode, token_texts
from tdistill.data.tokens import spells_special, splits_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def diagnose(
    source: str,
    outcomes: Sequence[Outcome],
    kept: Sequence[Outcome],
    *,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    columns: SourceColumns,
    template: Template,
    end_id: int,
    rows_read: int,
    empty_rows: int,
    long_prompts: int,
) -> DoctorReport:
    """Write the report on a source.

    Args:
        source: as given by the user.
        outcomes: of every record with a prompt that is not too long.
        kept: those that became examples, at least one.
        tokenizer: the tokenizer of teacher and student.
        config: as given by the user.
        columns: the roles of the columns.
        template: the resolved template, not ``auto``.
        end_id: the token that ends a response.
        rows_read: rows read.
        empty_rows: rows with nothing to answer, which were left out.
        long_prompts: rows with too long a prompt, likewise.

    Returns:
        The report.
    """
    examples = [outcome.example for outcome in kept if outcome.example is not None]
    answered = [example for example in examples if example.reference_ids]
    special = _count_specials(tokenizer, kept)
    compared = [outcome for outcome in kept if outcome.compared]
    faults = [outcome for outcome in outcomes if outcome.fault is not None]
    notes = (
        *columns.notes,
        *_template_notes(template, config, kept),
        *_special_notes(tokenizer, template, *special),
    )
    prompt_lengths = [len(example.prompt_ids) for example in examples]
    response_lengths = [len(example.reference_ids) for example in answered]
    refused = sum(outcome.example is None for outcome in outcomes)
    return DoctorReport(
        source=source,
        format=columns.format,
        template=template,
        roles=columns.roles,
        ignored=columns.ignored,
        notes=notes,
        end_token=decode(tokenizer, [end_id]),
        end_id=end_id,
        rows_read=rows_read,
        rows_rendered=len(outcomes),
        rows_answered=sum(bool(outcome.record.references) for outcome in outcomes),
        rows_kept=len(examples),
        empty_rows=empty_rows,
        refused_rows=refused,
        long_prompts=long_prompts,
        endless_rows=sum(not example.reference_ended for example in answered),
        without_reference=len(examples) - len(answered),
        duplicate_prompts=len(examples) - len({example.prompt_ids for example in examples}),
        special_in_prompts=special[0],
        special_in_responses=special[1],
        faults=dict(Counter(str(outcome.fault) for outcome in faults).most_common()),
        first_faults={str(o.fault): o.record.where for o in reversed(faults)},
        lost=dict(Counter(field for outcome in kept for field in outcome.lost)),
        boundary_checked=len(compared),
        boundary_equal=sum(outcome.own for outcome in compared),
        boundary_think=sum(not o.own and o.fault is None for o in compared),
        closed_blocks=sum(outcome.closed for outcome in kept),
        trained_turns=config.trained_turns,
        earlier_turns=_earlier_turns(kept, config),
        prompt_tokens_mean=sum(prompt_lengths) / len(prompt_lengths),
        prompt_tokens_max=max(prompt_lengths),
        response_tokens_mean=sum(response_lengths) / max(len(response_lengths), 1),
        response_tokens_max=max(response_lengths, default=0),
        sample=_sample(tokenizer, kept),
    )


def _count_specials(tokenizer: PreTrainedTokenizerBase, kept: Sequence[Outcome]) -> tuple[int, int]:
    """Rows that spell a special token in their own prompt text, and in their response."""
    records = [outcome.record for outcome in kept]
    in_prompts = sum(spells_special(tokenizer, own_text(record.prompt)) for record in records)
    in_responses = sum(
        spells_special(tokenizer, text_of_response(record.references[0]))
        for record in records
        if record.references
    )
    return in_prompts, in_responses


def _earlier_turns(kept: Sequence[Outcome], config: DataConfig) -> int:
    """Turns of the assistant that stand in prompts and are no example of their own."""
    if config.trained_turns == "all":
        return 0
    prompts = (outcome.record.prompt for outcome in kept)
    turns = (turn for prompt in prompts if isinstance(prompt, tuple) for turn in prompt)
    return sum(turn["role"] == "assistant" for turn in turns)


def _template_notes(template: Template, config: DataConfig, kept: Sequence[Outcome]) -> list[str]:
    notes: list[str] = []
    if config.system and template == "alpaca":
        notes.append("data.system is not used: the alpaca template has no place for it")
    closed = sum(outcome.closed for outcome in kept)
    if closed:
        notes.append(
            f"{closed} responses have no reasoning: the think block that the prompt opens is "
            "closed before them"
        )
    wrote = sum(outcome.wrote_end for outcome in kept)
    if wrote:
        notes.append(f"{wrote} responses write their own end token: it is taken as their end")
    if config.template_kwargs and template == "chat":
        given = ", ".join(f"{k} = {json.dumps(v)}" for k, v in config.template_kwargs.items())
        notes.append(f"the chat template is given {given}")
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


def _sample(tokenizer: PreTrainedTokenizerBase, kept: Sequence[Outcome]) -> ShownRow:
    """The first row with a response, or the first row."""
    pairs = [(outcome.record.where, o) for outcome in kept if (o := outcome.example) is not None]
    where, example = next((pair for pair in pairs if pair[1].reference_ids), pairs[0])
    return ShownRow(
        where=where,
        prompt=decode(tokenizer, example.prompt_ids),
        prompt_tokens=len(example.prompt_ids),
        trained=tuple(token_texts(tokenizer, example.reference_ids)),
        ended=example.reference_ended,
    )


def own_text(prompt: Prompt) -> str:
    """The prompt's text before rendering."""
    if isinstance(prompt, Instruction):
        return f"{prompt.instruction}\n{prompt.input}"
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn.get("content", "") for turn in prompt)
