"""How rows may be laid out for a network: tried once each, on a few tokens.

What is tried: that a token's scores do not depend on later ones, that padding and given positions
change nothing, and that the responses of a prompt can share its tokens.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tdistill.errors import ModelError, one_line
from tdistill.models.head_form import own_logits
from tdistill.models.language_model import inner_model
from tdistill.models.layout import Layout, Pair, lay_out, pack, separate
from tdistill.models.positions import position_limit
from tdistill.models.prefix_sharing import parts_of
from tdistill.models.probes import (
    FAILURES,
    block_length,
    disagreement,
    has_untried_blocks,
    on_trial,
    probe_tokens,
    remembered,
)
from tdistill.models.reading import arguments_of
from tdistill.models.seen_parts import attends_by_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Way = Literal["parts", "nothing", "mask"]
"""What a network is told of what its tokens see: by parts, nothing but the order, or a mask."""

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
    """Arguments of a forward pass over rows that are padded behind, if at all.

    What is behind a token changes nothing for it, so no mask is made where the network needs none.

    Args:
        lm: the causal language model.
        network: what is run: the model itself, or its part below the output layer.
        layout: the rows.
    """
    if layout.sharing is None:
        return _inputs(network, layout, _trial_of_rows(lm)[1])
    return _inputs(network, layout, _sharing_of(lm) or "mask")


def _inputs(network: Any, layout: Layout, way: _Way) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": layout.input_ids, "attention_mask": None}
    sharing, config, device = layout.sharing, network.config, layout.input_ids.device
    if sharing is not None:
        inputs["position_ids"] = sharing.position_ids
    if way == "parts":
        rows = None if sharing is None else sharing.rows
        inputs["attention_mask"] = parts_of(config, rows, device)
    elif sharing is not None:
        inputs["attention_mask"] = sharing.masks(config, network.dtype)
    elif way == "mask":
        inputs["attention_mask"] = layout.attention_mask
    return inputs


@remembered
def _trial_of_rows(lm: Any) -> tuple[str | None, _Way]:
    """What is wrong with rows padded on the right, or None; how padding is told of, if at all."""
    block = _block_within(lm, _LENGTHS[0])
    lengths = block + _LENGTHS[0], block + _LENGTHS[1], block // 2 + _LENGTHS[2]
    rows = [probe_tokens(lm, length) for length in lengths]  # each is the beginning of the first
    own = [own_logits(lm, row) for row in rows]
    problem = disagreement(own[2], own[0][: lengths[2]], lm.dtype)
    if problem is not None:
        return f"more tokens behind a row change its scores {problem}", "mask"
    for way in ("parts", "nothing", "mask"):
        problem = _padding_problem(lm, rows, own, way)
        if problem is None:
            return None, way
    return f"padding behind a row changes its scores ({problem})", "mask"


def _block_within(lm: Any, more: int) -> int:
    """The longest block of a network, if it has positions for so many tokens more; else none."""
    block, limit = block_length(lm), position_limit(lm)
    return 0 if limit is not None and block + more > limit.tokens else block


def _padding_problem(
    lm: Any, rows: list[tuple[int, ...]], own: list[Tensor], way: _Way
) -> str | None:
    # The last token of a response is not read: one more, so that all of the row is.
    pairs = [Pair(row[:1], (*row[1:], row[0])) for row in rows]
    laid = pack(pairs, pad_id=rows[0][0]).to(lm.device)
    try:
        return disagreement(_logits(lm, laid, way), torch.cat(own), lm.dtype)
    except (ModelError, *FAILURES) as error:
        return one_line(error)


def _logits(lm: Any, laid: Layout, way: _Way) -> Tensor:
    if way == "parts" and not attends_by_parts(lm.config):
        raise ModelError("its attention takes masks alone")
    with on_trial(lm):
        logits = lm(**_inputs(lm, laid, way), use_cache=False).logits
    return logits[laid.row, laid.position]


def shares_prompts(model: nn.Module) -> bool:
    """Whether the network gives the same scores when responses share their prompt's tokens.

    Tried once on a tiny example; a network that does not is named in a warning. Under FSDP call
    this before the network is wrapped.
    """
    return _sharing_of(model) is not None


def masks_rows(model: nn.Module) -> bool:
    """Whether shared rows cost a mask over the whole row: 9 bytes for each pair of its tokens."""
    return _sharing_of(model) == "mask"


@remembered
def _sharing_of(lm: Any) -> _Way | None:
    """How a network reads shared rows, or None."""
    ways: tuple[_Way, ...] = ("parts", "mask")
    problems = []
    for way in ways:
        problem = _sharing_problem(lm, way)
        if problem is None:
            return way
        problems.append(problem)
    warnings.warn(
        f"{type(lm).__name__}: the responses of a prompt cannot share its tokens "
        f"({problems[-1]}); they get separate rows, which costs time",
        stacklevel=5,
    )
    return None


def _sharing_problem(lm: Any, way: _Way) -> str | None:
    """What is wrong with shared prompts, or None."""
    if not _takes_positions(lm):
        return "its forward takes no position_ids"
    if has_untried_blocks(lm):
        return "it reads in blocks too long to be tried"
    # A block ends within the first response; in the others one does in the row, not the sequence.
    block = _block_within(lm, 8)
    prompts = [probe_tokens(lm, 4, skip=3 * n) for n in range(2)]
    lengths = block + 4, block // 2 + 4, block // 2 + 4
    responses = [probe_tokens(lm, n, skip=6 + 3 * i) for i, n in enumerate(lengths)]
    pairs = [Pair(prompt, response) for response in responses for prompt in prompts]
    shared = lay_out(pairs, prompts[0][0])
    shared = shared.to(lm.device)
    try:
        apart = _logits(lm, separate(shared), _trial_of_rows(lm)[1])
        found = disagreement(_logits(lm, shared, way), apart, lm.dtype)
    except (ModelError, *FAILURES) as error:
        return one_line(error)
    return None if found is None else f"scores differ {found}"


def _takes_positions(network: nn.Module) -> bool:
    return "position_ids" in arguments_of(network)
