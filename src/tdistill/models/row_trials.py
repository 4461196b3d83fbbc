"""How rows may be laid out for a network: tried once each, on a few tokens.

What is tried: that a token's scores do not depend on later ones, that padding and given positions
change nothing, and that the responses of a prompt can share its tokens.
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tdistill.errors import ModelError, one_line
from tdistill.models.head_form import own_logits
from tdistill.models.language_model import inner_model
from tdistill.models.layout import Layout, Pair, lay_out, pack, separate
from tdistill.models.positions import position_limit
from tdistill.models.probes import (
    FAILURES,
    block_length,
    disagreement,
    on_trial,
    probe_tokens,
    remembered,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTHS = (9, 6, 4)  # tokens of the rows that are tried, beyond a block


def check_reading(model: nn.Module) -> None:
    """Refuse a network whose rows cannot be scored; tried once.

    Raises:
        ModelError: it is not causal, or padding on the right changes what it gives.
    """
    network: Any = inner_model(model)
    problem, _ = _trial_of_rows(network)
    if problem is not None:
        raise ModelError(
            f"{type(network).__name__}: expected a causal language model, whose scores depend on "
            f"earlier tokens alone; {problem}. Take a model that was trained to continue text"
        )


def forward_inputs(lm: PreTrainedModel, network: Any, layout: Layout) -> dict[str, Any]:
    """Arguments of a forward pass whose positions count tokens, not padding.

    Args:
        lm: the causal language model.
        network: what is run: the model itself, or its part below the output layer.
        layout: the rows.
    """
    mask, sharing = layout.attention_mask, layout.sharing
    inputs: dict[str, Any] = {"input_ids": layout.input_ids, "attention_mask": mask}
    if sharing is not None:
        inputs["attention_mask"] = sharing.masks(network.config, network.dtype)
        inputs["position_ids"] = sharing.position_ids
    elif _takes_positions(network) and counts_positions(lm):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return inputs


@remembered
def counts_positions(lm: Any) -> bool:
    """Whether the network takes positions and they are 0, 1, 2, ... where none are given."""
    if not _takes_positions(lm):
        return False
    tokens = probe_tokens(lm, _LENGTHS[0])
    own = own_logits(lm, tokens)
    ids = torch.tensor([tokens], device=lm.device)
    with on_trial(lm):
        try:
            positions = torch.arange(len(tokens), device=lm.device)[None]
            given = lm(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        except FAILURES:
            return False
    return disagreement(given, own, lm.dtype) is None


def reads_left_padding(model: nn.Module) -> bool:
    """Whether padding before a row changes nothing: recurrent states may take it in."""
    return _trial_of_rows(model)[1]


@remembered
def _trial_of_rows(lm: Any) -> tuple[str | None, bool]:
    """What is wrong with rows padded on the right, or None; whether they can be on the left."""
    block, limit = block_length(lm), position_limit(lm)
    longest = block + _LENGTHS[0]
    if limit is not None and longest > limit.tokens:
        block = 0
    lengths = block + _LENGTHS[0], block + _LENGTHS[1], block // 2 + _LENGTHS[2]
    rows = [probe_tokens(lm, length) for length in lengths]  # each is the beginning of the first
    own = [own_logits(lm, row) for row in rows]
    problem = disagreement(own[2], own[0][: lengths[2]], lm.dtype)
    if problem is not None:
        return f"more tokens behind a row change its scores {problem}", False
    problem = _padding_problem(lm, rows, own, "right")
    if problem is not None:
        return f"padding behind a row changes its scores ({problem})", False
    return None, _padding_problem(lm, rows, own, "left") is None


def _padding_problem(
    lm: Any, rows: list[tuple[int, ...]], own: list[Tensor], side: str
) -> str | None:
    # The last token of a response is not read: one more, so that all of the row is.
    pairs = [Pair(row[:1], (*row[1:], row[0])) for row in rows]
    laid = pack(pairs, pad_id=rows[0][0], padding_side=side).to(lm.device)
    try:
        found = _logits(lm, laid)
    except FAILURES as error:
        return one_line(error)
    return disagreement(found, torch.cat(own), lm.dtype)


def _logits(lm: Any, laid: Layout) -> Tensor:
    with on_trial(lm):
        logits = lm(**forward_inputs(lm, lm, laid), use_cache=False).logits
    return logits[laid.row, laid.position]


@remembered
def shares_prompts(lm: Any) -> bool:
    """Whether the network gives the same scores when responses share their prompt's tokens.

    Tried once on a tiny example; a network that does not is named in a warning. Under FSDP call
    this before the network is wrapped.
    """
    problem = _sharing_problem(lm)
    if problem is not None:
        warnings.warn(
            f"{type(lm).__name__}: the responses of a prompt cannot share its tokens "
            f"({problem}); they get separate rows, which costs time",
            stacklevel=4,
        )
    return problem is None


def _sharing_problem(lm: PreTrainedModel) -> str | None:
    """What is wrong with shared prompts, or None."""
    if not _takes_positions(lm):
        return "its forward takes no position_ids"
    tokens = [probe_tokens(lm, 4, skip=3 * n) for n in range(6)]
    shared = lay_out([Pair(tokens[i % 2], tokens[i]) for i in range(6)], tokens[0][0])
    shared = shared.to(lm.device)
    try:
        apart = disagreement(_logits(lm, shared), _logits(lm, separate(shared)), lm.dtype)
    except (ModelError, *FAILURES) as error:
        return one_line(error)
    return None if apart is None else f"scores differ {apart}"


def _takes_positions(network: nn.Module) -> bool:
    return "position_ids" in inspect.signature(network.forward).parameters
