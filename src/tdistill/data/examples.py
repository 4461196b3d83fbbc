"""From a source of rows to tokenised prompts and responses, with the doctor's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tdistill.data.config import DataConfig, Template
from tdistill.data.diagnose import diagnose
from tdistill.data.doctor import DoctorReport
from tdistill.data.formats import (
    PromptRecord,
    SourceColumns,
    choose_columns,
    detect_format,
    parse_record,
)
from tdistill.data.rendering import is_blank, resolve_template
from tdistill.data.sources import SourceRow, column_names, read_rows
from tdistill.data.tokens import Example, make_examples
from tdistill.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_examples(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    limit: int | None = None,
    require_references: bool = False,
    every_response: bool = False,
) -> tuple[list[Example], DoctorReport]:
    """Read, check, render and tokenise the rows of a source, in order.

    Args:
        source: a path or ``demo:SPLIT``, as in ``DataConfig``.
        tokenizer: the tokenizer of teacher and student.
        config: format, template and lengths in tokens.
        limit: number of rows to read, before any is left out.
        require_references: refuse rows that bring no response; a blank one counts as empty.
        every_response: an example for each response of a row, not one with all of them.

    Returns:
        The examples and the report.

    Raises:
        DataError: the source cannot be read without guessing, or no row is left.
        ModelError: the tokenizer has no end token.
    """
    rows = read_rows(source, limit=limit)
    columns, template = _resolved(rows, source, tokenizer, config)
    records = [parse_record(row, columns) for row in rows]
    if require_references:
        _refuse_missing(records, source)
    if every_response:
        records = [
            replace(record, references=(text,) if text is not None else ())
            for record in records
            for text in record.references or (None,)
        ]
    filled = [
        record
        for record in records
        if not is_blank(record.prompt) and not (require_references and record.blank_reference)
    ]
    examples = make_examples(tokenizer, template, filled, config)
    kept = [
        (record, example)
        for record, example in zip(filled, examples, strict=True)
        if len(example.prompt_ids) <= config.max_prompt_tokens
    ]
    empty, long = len(records) - len(filled), len(filled) - len(kept)
    if not kept:
        raise DataError(
            f"{source}: expected at least one usable row; found {len(rows)} rows, {empty} empty "
            f"and {long} with a prompt of more than data.max_prompt_tokens "
            f"({config.max_prompt_tokens}). Check the columns, or raise data.max_prompt_tokens."
        )
    report = diagnose(
        source,
        kept,
        tokenizer=tokenizer,
        config=config,
        columns=columns,
        template=template,
        rows_read=len(rows),
        empty_rows=empty,
        long_prompts=long,
    )
    return [example for _, example in kept], report


def _resolved(
    rows: Sequence[SourceRow], source: str, tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> tuple[SourceColumns, Template]:
    if not rows:
        raise DataError(f"{source}: expected at least one row; found none. Name another source.")
    columns = column_names(rows)
    format = detect_format(columns, config.format, source)
    template = resolve_template(tokenizer, config.template, format)
    return choose_columns(columns, format, template, source), template


def _refuse_missing(records: Sequence[PromptRecord], source: str) -> None:
    missing = [r for r in records if not r.references and not r.blank_reference]
    if missing:
        raise DataError(
            f"{missing[0].where}: expected a response, which this use of the data needs (in "
            f"messages: the last turn is the assistant's); found none here and in "
            f"{len(missing) - 1} other rows of {source}. Remove these rows or complete them."
        )
