"""Plain text for the language-model stream, in chunks of equal length."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tdistill.data.sources import (
    DEMO_PREFIX,
    ROW_SUFFIXES,
    existing_path,
    read_rows,
    read_text,
    type_name,
)
from tdistill.data.tokens import encode_responses, end_token_id
from tdistill.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_text_chunks(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, chunk_length: int
) -> list[tuple[int, ...]]:
    """Tokenise plain text and cut it into chunks.

    Documents follow each other in order, each closed by the tokenizer's end token where it has one;
    what remains at the end and does not fill a chunk is left out. Spelt-out special tokens are read
    as plain text.

    Args:
        path: a UTF-8 text file, a folder of ``.txt`` files, a pattern such as ``texts/*.txt``, or a
            JSONL, ``.json``, Parquet or ``datasets`` source with a ``text`` column.
        tokenizer: the tokenizer of teacher and student.
        chunk_length: tokens in a chunk.

    Returns:
        Chunks of exactly ``chunk_length`` token ids.

    Raises:
        DataError: nothing at this path, no ``text`` column, or too little text for one chunk.
    """
    if chunk_length < 1:
        raise DataError(f"chunk_length: expected at least 1 token; found {chunk_length}. Raise it.")
    documents = [text for text in _documents(str(path)) if text.strip()]
    end = end_token_id(tokenizer)
    closing = () if end is None else (end,)
    stream = [token for ids in encode_responses(tokenizer, documents) for token in (*ids, *closing)]
    if len(stream) < chunk_length:
        raise DataError(
            f"{path}: expected text for at least one chunk of {chunk_length} tokens; "
            f"found {len(stream)} tokens. Give more text or shorten the chunks."
        )
    starts = range(0, len(stream) - chunk_length + 1, chunk_length)
    return [tuple(stream[start : start + chunk_length]) for start in starts]


def _documents(source: str) -> Iterator[str]:
    matches = sorted(glob.glob(source)) if glob.has_magic(source) else []  # noqa: PTH207
    if matches:
        for match in matches:
            yield from _documents(match)
        return
    if source.startswith(DEMO_PREFIX):
        yield from _column(source)
        return
    path = existing_path(source)
    if path.suffix.lower() in ROW_SUFFIXES or (path / "dataset_info.json").exists():
        yield from _column(source)
    elif path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise DataError(
                f"{path}: expected .txt files in the folder; found none. "
                "Name the files by a pattern, such as texts/*.md."
            )
        yield from map(read_text, files)
    else:
        yield read_text(path)


def _column(source: str) -> Iterator[str]:
    for row in read_rows(source):
        if "text" not in row.values:
            raise DataError(
                f"{row.where}: expected a column text for the language-model stream; found the "
                f"columns {', '.join(row.values)}. Rename the column."
            )
        value = row.values["text"]
        if value is None:
            continue
        if not isinstance(value, str):
            raise DataError(
                f"{row.where}, column text: expected text; found {type_name(value)}. "
                "Correct the row."
            )
        yield value
