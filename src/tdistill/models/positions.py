"""How many tokens a model can place: beyond a table of positions it fails, others go on worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from tdistill.errors import ModelError, excerpt
from tdistill.models.language_model import LanguageModel, inner_model
from tdistill.models.probes import remembered

if TYPE_CHECKING:
    from tdistill.models.layout import Tokens

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
_TABLES = ("embed_positions", "pos_encoding")
_SPARE = 4  # rows that a table may have more than positions
# Rotary embeddings that turn otherwise once a row is longer than those of the first training: what
# was read before keeps the old angles, and rows read together get those of the longest.
_LENGTH_DEPENDENT = ("dynamic", "longrope")


class PositionLimit(NamedTuple):
    """The most tokens of a row.

    Attributes:
        tokens: how many.
        hard: whether the network fails beyond; else it was only not trained there.
        changes: the kind of rotary embedding by which its scores depend on later tokens beyond.
    """

    tokens: int
    hard: bool
    changes: str | None = None


@remembered
def position_limit(model: Any) -> PositionLimit | None:
    """What a network says and has of positions; None where it counts without end."""
    config = model.config.get_text_config()
    rotary = _rotary_limit(config)
    if rotary is not None:
        return rotary
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


def _rotary_limit(config: Any) -> PositionLimit | None:
    """The length up to which rotary embeddings do not depend on the length."""
    given = getattr(config, "rope_parameters", None) or {}
    own = "original_max_position_embeddings"
    for rope in (given, *given.values()):  # one, or one for each type of layer
        kind = rope.get("rope_type") if isinstance(rope, dict) else None
        if kind in _LENGTH_DEPENDENT:
            first = rope.get(own) if kind == "longrope" else None
            first = first or getattr(config, own, None) or config.max_position_embeddings
            return PositionLimit(int(first), hard=True, changes=str(kind))
    return None


def check_rows(lm: LanguageModel, rows: Sequence[Tokens], where: str) -> str | None:
    """Refuse rows that a model cannot read: of tokens that it has not, or too long.

    Args:
        lm: the model.
        rows: prompts with responses, which may be empty.
        where: the field, or the use, that they come from.

    Returns:
        As `check_positions`.

    Raises:
        ModelError: a token without an embedding, which a tokenizer has that was added to; or as
            `check_positions`.
    """
    embedding: Any = inner_model(lm.model).get_input_embeddings()
    known = int(embedding.weight.shape[0])
    largest = max((max((*r.prompt_ids, *r.response_ids)) for r in rows), default=0)
    if largest >= known:
        text = excerpt(lm.tokenizer.convert_ids_to_tokens(largest))
        raise ModelError(
            f"{where}: expected tokens that {lm.name} can read, of ids below {known}; found "
            f"{largest} ({text}), which only its tokenizer has; resize the model's embeddings, or "
            "take the token out of tokenizer and chat template"
        )
    # The last token is predicted, never read.
    longest = max((len(r.prompt_ids) + max(len(r.response_ids) - 1, 0) for r in rows), default=0)
    return check_positions(lm, longest, where)


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
    if limit.changes is not None:
        raise ModelError(
            f"{where}: expected rows of at most {limit.tokens} tokens, since beyond the rotary "
            f"embedding of {name} {lm.name} ({limit.changes}) depends on the length of what is "
            f"read together; found {tokens} with the longest prompt; lower it, or "
            "data.max_prompt_tokens"
        )
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
