"""From a source of rows to tokenised prompts and responses, with the doctor's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from tdistill.data.chat import chat_template_of
from tdistill.data.columns import (
    RESPONSE_ROLES,
    SourceColumns,
    choose_columns,
    detect_format,
    named_columns,
)
from tdistill.data.config import DataConfig, Template
from tdistill.data.diagnose import diagnose, own_text
from tdistill.data.doctor import DoctorReport
from tdistill.data.formats import PromptRecord, parse_records
from tdistill.data.making import Example, Outcome, make_examples
from tdistill.data.readers import SourceRow
from tdistill.data.rendering import is_blank, resolve_template
from tdistill.data.sources import column_names, read_rows
from tdistill.data.tokens import response_end_id
from tdistill.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# No token of any vocabulary is longer: a prompt of more characters for each token that it may have
# is too long, and is not tokenised to find out.
MOST_CHARACTERS = 1024


def load_examples(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    limit: int | None = None,
    require_references: bool = False,
    every_response: bool = False,
    clock: datetime | None = None,
    rows: Sequence[SourceRow] | None = None,
) -> tuple[list[Example], DoctorReport]:
    """Read, check, render and tokenise the rows of a source, in order.

    Args:
        source: as in ``DataConfig``.
        tokenizer: the tokenizer of teacher and student.
        config: format, template and lengths in tokens.
        limit: number of rows to use, before any is left out.
        require_references: refuse rows that bring no response; a blank one counts as empty, and
            one that the template cannot express is left out.
        every_response: an example for each response of a row, not one with all of them.
        clock: what a template is told that asks for the date; None: now.
        rows: of the source, where they were read before.

    Returns:
        The examples and the report.

    Raises:
        DataError: the source cannot be read without guessing, no row is left, or more rows than
            ``data.max_boundary_failures`` cannot be expressed.
        ModelError: the tokenizer has no end token.
    """
    rows = read_rows(source, limit=limit) if rows is None else rows[:limit]
    columns, template = _resolved(rows, source, tokenizer, config)
    chat = chat_template_of(tokenizer, config, clock) if template == "chat" else None
    records = [
        record for row in rows for record in parse_records(row, columns, config.trained_turns)
    ]
    if require_references:
        records = _answered(records, source, columns)
    if every_response:
        records = [apart for record in records for apart in _apart(record)]
    filled = [r for r in records if not _is_empty(r, require_references)]
    most = MOST_CHARACTERS * config.max_prompt_tokens
    worth_it = [record for record in filled if len(own_text(record.prompt)) <= most]
    outcomes = make_examples(tokenizer, template, worth_it, config, chat)
    fitting = [outcome for outcome in outcomes if not _is_long(outcome, config)]
    kept = [outcome for outcome in fitting if _is_usable(outcome, require_references)]
    empty, long = len(records) - len(filled), len(filled) - len(fitting)
    if not kept:
        found = f"{len(rows)} rows, {empty} empty"
        raise DataError(_nothing_left(source, found, long, fitting, config))
    report = diagnose(
        source,
        fitting,
        kept,
        tokenizer=tokenizer,
        config=config,
        columns=columns,
        template=template,
        end_id=response_end_id(tokenizer, template, chat),
        rows_read=len(rows),
        empty_rows=empty,
        long_prompts=long,
    )
    refuse_faults(report, config, responses=require_references)
    return [outcome.example for outcome in kept if outcome.example is not None], report


def refuse_faults(report: DoctorReport, config: DataConfig, *, responses: bool) -> None:
    """Refuse a source of which the chat template cannot express too large a share.

    Args:
        report: on the source.
        config: ``max_boundary_failures``, the largest share.
        responses: whether the responses are trained on; else prompts alone count.

    Raises:
        DataError: with every reason, its number of rows and the first of them.
    """
    found, of = report.refused_rows, report.rows_rendered
    if responses and found <= config.max_boundary_failures * of:
        found, of = sum(report.faults.values()), report.rows_answered
    if found <= config.max_boundary_failures * of:
        return
    reasons = "; ".join(
        f"{count} {reason} (first: {report.first_faults[reason]})"
        for reason, count in report.faults.items()
    )
    raise DataError(
        f"{report.source}: expected rows that the chat template can express, all but "
        f"{config.max_boundary_failures:.0%} of them; found {found} of {of} that it cannot: "
        f"{reasons}. Change the rows, data.template or data.template_kwargs, or raise "
        "data.max_boundary_failures to go on without them."
    )


def _resolved(
    rows: Sequence[SourceRow], source: str, tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> tuple[SourceColumns, Template]:
    if not rows:
        raise DataError(f"{source}: expected at least one row; found none. Name another source.")
    columns = named_columns(column_names(rows), config.columns, source)
    format = detect_format(columns, config.format, source)
    template = resolve_template(tokenizer, config.template, format)
    if template != "chat":
        for field in ("template_kwargs", "template_name"):
            if getattr(config, field):
                raise DataError(
                    f"data.{field}: expected a chat template to use it; found the template "
                    f"{template}. Remove it, or use a tokenizer with a chat template."
                )
    return choose_columns(columns, format, template, source), template


def _answered(
    records: Sequence[PromptRecord], source: str, columns: SourceColumns
) -> list[PromptRecord]:
    """The records of rows that bring a response."""
    places = {r.where for r in records if r.references or r.blank_reference}
    missing = [r for r in records if r.where not in places]
    if missing:
        others = len({r.where for r in missing}) - 1
        raise DataError(
            f"{missing[0].where}: expected a response, which this use of the data needs (in "
            f"messages: the last turn is the assistant's); found none here and in {others} other "
            f"rows of {source}.{unused_columns(columns)} Remove these rows or complete them."
        )
    return [r for r in records if r.references or r.blank_reference]


def unused_columns(columns: SourceColumns) -> str:
    """A sentence on the columns that might hold the responses, where no column does."""
    if not columns.ignored or any(role in columns.roles for role in RESPONSE_ROLES):
        return ""
    return (
        f" Not used: the columns {', '.join(columns.ignored)}; one that holds the responses can be "
        f"named, as in data.columns: {{response: {columns.ignored[0]}}}."
    )


def _apart(record: PromptRecord) -> list[PromptRecord]:
    """A record for each response."""
    if not record.references:
        return [record]
    return [replace(record, references=(response,)) for response in record.references]


def _is_empty(record: PromptRecord, require_references: bool) -> bool:
    return is_blank(record.prompt) or (require_references and record.blank_reference)


def _is_long(outcome: Outcome, config: DataConfig) -> bool:
    example = outcome.example
    return example is not None and len(example.prompt_ids) > config.max_prompt_tokens


def _is_usable(outcome: Outcome, require_references: bool) -> bool:
    example = outcome.example
    return example is not None and (bool(example.reference_ids) or not require_references)


def _nothing_left(
    source: str, found: str, long: int, faulty: Sequence[Outcome], config: DataConfig
) -> str:
    text = (
        f"{source}: expected at least one usable row; found {found} and {long} with a prompt of "
        f"more than data.max_prompt_tokens ({config.max_prompt_tokens})"
    )
    if faulty:
        first = faulty[0]
        text += f"; and {len(faulty)} with a fault ({first.record.where}: {first.fault})"
    return f"{text}. Check the columns and the template, or raise data.max_prompt_tokens."
