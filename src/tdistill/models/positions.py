"""How many tokens a model can place: beyond a table of positions it fails, others go on worse."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from tdistill.errors import ModelError
from tdistill.models.language_model import LanguageModel, inner_model
from tdistill.models.probes import remembered

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
_TABLES = ("embed_positions", "pos_encoding")
_SPARE = 4  # rows that a table may have more than positions


class PositionLimit(NamedTuple):
    """The most tokens of a row.

    Attributes:
        tokens: how many.
        hard: whether the network fails beyond; else it was only not trained there.
    """

    tokens: int
    hard: bool


@remembered
def position_limit(model: Any) -> PositionLimit | None:
    """What a network says and has of positions; None where it counts without end."""
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in _NAMES)
    declared = next((n for n in named if isinstance(n, int) and n > 0), None)
    if declared is None:
        return None
    for name, module in model.named_modules():
        table = isinstance(module, nn.Embedding) and ("position" in name or name.endswith("wpe"))
        if table and 0 <= module.num_embeddings - declared <= _SPARE:
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            return PositionLimit(min(declared, module.num_embeddings - before), hard=True)
    tables = [n for n, rows in model.named_buffers() if rows.dim() and len(rows) == declared]
    if any(name.endswith(_TABLES) for name in tables) or hasattr(config, "max_seq_len"):
        return PositionLimit(declared, hard=True)
    return PositionLimit(declared, hard=False)


def check_positions(lm: LanguageModel, tokens: int, where: str) -> str | None:
    """Refuse rows that a model cannot place.

    Args:
        lm: the model.
        tokens: of the longest row.
        where: the field, or the use, that makes it so long.

    Returns:
        A warning where the model goes on, but was not trained on rows of that length; or None.

    Raises:
        ModelError: the network has no such positions.
    """
    limit = position_limit(lm.model)
    if limit is None or tokens <= limit.tokens:
        return None
    name = type(inner_model(lm.model)).__name__
    if limit.hard:
        raise ModelError(
            f"{where}: expected rows of at most {limit.tokens} tokens, all the positions that "
            f"{name} {lm.name} has; found {tokens} with the longest prompt; lower it, or "
            "data.max_prompt_tokens"
        )
    return (
        f"{where}: rows of up to {tokens} tokens, but {lm.name} was made for {limit.tokens}: what "
        "it writes beyond may be worse"
    )
