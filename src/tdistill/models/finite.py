"""Logits that are no numbers: found at the step that makes them, traced to a layer, and kept."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdistill.errors import ModelError
from tdistill.files import write_atomically
from tdistill.models.language_model import inner_model


class NonFiniteError(ModelError):
    """A model gives logits that are no numbers.

    Attributes:
        batch: what was read: ``model``, ``row`` and ``position`` of the first such logits,
            ``first_layer`` where they come from, and the tokens of all rows in ``input_ids``.
    """

    def __init__(self, message: str, batch: dict[str, Any]) -> None:
        super().__init__(message)
        self.batch = batch


def has_numbers(logits: Tensor) -> Tensor:
    """Whether each step of logits ``[..., V]`` can be used: no NaN, no +inf, not all -inf.

    A single -inf is a token that the model rules out.

    Example:
        >>> inf, nan = float("inf"), float("nan")
        >>> has_numbers(torch.tensor([[1.0, -inf], [-inf, -inf], [inf, 0.0], [nan, 0.0]])).tolist()
        [True, False, False, False]
    """
    return logits.amax(-1).isfinite()  # NaN is the largest of any numbers


def refuse_step(model: nn.Module, rows: Sequence[Sequence[int]], row: int, position: int) -> None:
    """Say where logits without numbers come from.

    Args:
        model: the network.
        rows: tokens of the rows that were read together, without padding.
        row: the first row concerned.
        position: its first token after which there are no logits. A later token, or one of another
            response to the prompt, may be the cause: it has no weight in attention, but 0 times NaN
            is NaN.

    Raises:
        NonFiniteError: always.
    """
    network: Any = inner_model(model)
    weight, layer = _first_weight(network), None
    if weight is None:
        row, position, layer = _first_place(network, rows, row, position)
    name = f"{type(network).__name__} {network.name_or_path}".strip()
    if weight is not None:
        why = f"its weight {weight} holds NaN or infinity; take a sound checkpoint"
    elif layer is not None:
        why = (
            f"the first such output is that of {layer}; numbers beyond what {network.dtype} holds "
            "are the usual cause: load it in float32 or bfloat16"
        )
    else:
        why = "its own forward pass over the row alone is finite: padding or a faster kernel fails"
    batch = {
        "model": name,
        "row": row,
        "position": position,
        "first_layer": layer if weight is None else weight,
        "input_ids": [list(ids) for ids in rows],
    }
    raise NonFiniteError(
        f"{name}: expected finite logits, found NaN or infinity in row {row} after token "
        f"{position + 1} of {len(rows[row])}; {why}",
        batch,
    )


@contextmanager
def keeping_bad_batch(path: Path) -> Iterator[None]:
    """Write the batch of a :class:`NonFiniteError` to a JSON file, and name the file in it."""
    try:
        yield
    except NonFiniteError as error:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(error.batch))
        raise NonFiniteError(f"{error}; the batch is in {path}", error.batch) from error


def _first_weight(network: nn.Module) -> str | None:
    """The first parameter that is not finite."""
    for name, weight in network.named_parameters():
        if not bool(weight.detach().isfinite().all()):
            return name
    return None


def _first_place(
    network: Any, rows: Sequence[Sequence[int]], row: int, position: int
) -> tuple[int, int, str | None]:
    """The row and token that bring in what is not finite, read alone, and the layer; by halving."""
    for other in (row, *range(len(rows))):
        ids, first = rows[other], position if other == row else 0
        if _first_layer(network, ids) is not None:
            lengths = range(first + 1, len(ids))
            more = bisect_left(lengths, True, key=lambda n: bool(_first_layer(network, ids[:n])))
            return other, first + more, _first_layer(network, ids[: first + more + 1])
    return row, position, None


def _first_layer(network: Any, ids: Sequence[int]) -> str | None:
    """The first module, in the order they end, whose output for the ids alone is not finite."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, given: Any, made: Any) -> None:
            output: Any = made[0] if isinstance(made, tuple) and made else made
            numbers = isinstance(output, Tensor) and output.is_floating_point()
            if numbers and not found and not bool(output.isfinite().all()):
                found.append(name)

        return look

    modules = [(name, module) for name, module in network.named_modules() if name]
    hooks = [module.register_forward_hook(watch(name)) for name, module in modules]
    try:
        with torch.no_grad():
            network(torch.tensor([list(ids)], device=network.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
