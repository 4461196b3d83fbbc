"""Hold a part of the training prompts out, so that what is validated and tested is the user's."""

from __future__ import annotations

from collections.abc import Sequence

from tdistill.data.columns import choose_columns, detect_format, named_columns
from tdistill.data.config import DataConfig
from tdistill.data.formats import Prompt, parse_records
from tdistill.data.readers import SourceRow
from tdistill.data.sources import column_names
from tdistill.errors import DataError
from tdistill.hashing import key_of


def split_rows(
    rows: Sequence[SourceRow], source: str, config: DataConfig
) -> dict[str, list[SourceRow]]:
    """Divide the rows of the training source over the splits that are ``auto``.

    Rows that ask the same stay together: a conversation goes by its first question. Which prompts
    are held out depends on the seed and on their text alone, not on their order.

    Args:
        rows: of the source.
        source: named in messages.
        config: the shares, the seed, and which splits are ``auto``.

    Returns:
        Rows of ``train`` and of each split that is taken from it, in the order of the source.

    Raises:
        DataError: too few prompts for the shares, or rows that cannot be read.
    """
    keys = _keys(rows, source, config)
    order = sorted(set(keys), key=lambda key: key_of(config.split_seed, key))
    place: dict[str, str] = {}
    for name in config.split_off:
        share = getattr(config, f"{name}_share")
        count = max(1, round(share * len(order))) if share else 0
        free = [key for key in order if key not in place]
        place |= dict.fromkeys(free[:count], name)
    if len(place) >= len(order):
        raise DataError(
            f"{source}: expected prompts for training beside those held out for "
            f"{' and '.join(config.split_off)}; found {len(order)} different ones in all. "
            "Give more rows, or name other sources for data.valid and data.test."
        )
    parts: dict[str, list[SourceRow]] = {name: [] for name in ("train", *config.split_off)}
    for key, row in zip(keys, rows, strict=True):
        parts[place.get(key, "train")].append(row)
    return parts


def _keys(rows: Sequence[SourceRow], source: str, config: DataConfig) -> list[str]:
    names = named_columns(column_names(rows), config.columns, source)
    columns = choose_columns(names, detect_format(names, config.format, source), "chat", source)
    return [key_of(_first_question(parse_records(row, columns)[0].prompt)) for row in rows]


def _first_question(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt.strip()
    if isinstance(prompt, tuple):
        asked = (turn.get("content", "") for turn in prompt if turn["role"] == "user")
        return next(asked, "").strip()
    return f"{prompt.instruction}\n{prompt.input}".strip()
