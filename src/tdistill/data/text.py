"""Plain text for the language-model stream, in chunks of equal length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tdistill.data.messages import check_text
from tdistill.data.readers import ROW_SUFFIXES, read_text, type_name
from tdistill.data.sources import matching_paths, read_rows
from tdistill.data.tokens import encode_responses, end_token_id
from tdistill.errors import DataError
from tdistill.files import DEMO_PREFIX, HUB_PREFIX

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
            source of rows (see `DataConfig`) with a ``text`` column.
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


def check_text_source(path: str) -> None:
    """Refuse a source of plain text that is not there, or has no text, before any work.

    Args:
        path: as for `load_text_chunks`.

    Raises:
        DataError: with the field of the recipe.
    """
    try:
        found = any(text.strip() for text in _documents(path))
    except DataError as error:
        raise DataError(f"data.lm_text: {error}") from error
    if not found:
        raise DataError(
            f"data.lm_text: expected text in {path}; found none but white space. Name another."
        )


def _documents(source: str) -> Iterator[str]:
    if source.startswith((DEMO_PREFIX, HUB_PREFIX)):
        yield from _column(source)
        return
    for path in matching_paths(source):
        if path.name.lower().endswith(ROW_SUFFIXES) or (path / "dataset_info.json").exists():
            yield from _column(str(path))
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
        check_text(value, f"{row.where}, column text")
        yield value
