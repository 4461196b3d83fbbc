"""Training that fails: stopped at the first number that is not finite, warned of before that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from tdistill.errors import DivergenceError

Logged = Mapping[str, float]

_WINDOW = 5  # logged entries whose mean is taken, at the beginning and at the end


def refuse_non_finite(
    who: str, update: int, loss: float, gradient: float, *, learning_rate: float, checkpoints: Path
) -> None:
    """Stop before an update that would put a NaN into every weight.

    Args:
        who: the objective.
        update: the number of the update that is not made.
        loss: of the whole update.
        gradient: norm over all weights, before clipping.
        learning_rate: at this update.
        checkpoints: folder of the run's checkpoints.

    Raises:
        DivergenceError: if one of the two is NaN or infinite.
    """
    if isfinite(loss) and isfinite(gradient):
        return
    raise DivergenceError(
        f"{who}: expected a finite loss and gradient at update {update}, found a loss of {loss:g} "
        f"and a gradient norm of {gradient:g} at a learning rate of {learning_rate:g}: training "
        "diverged, and the update was not made; lower training.learning_rate, or raise "
        f"training.warmup_steps{_left_in(checkpoints)}"
    )


def refuse_non_finite_weights(who: str, update: int, model: nn.Module) -> None:
    """Refuse to write a model that cannot be used.

    Raises:
        DivergenceError: naming the first weight that holds a NaN or an infinite number.
    """
    sound = [weight.detach().isfinite().all() for weight in model.parameters()]
    whole = all(type(mark) is Tensor for mark in sound)  # shards are looked at one by one
    if whole and all(bool(marks.all()) for marks in _by_device(sound)):
        return
    for name, weight in model.named_parameters():
        if not bool(weight.detach().isfinite().all()):
            raise DivergenceError(
                f"{who}: expected finite weights after update {update}, found NaN or infinite ones "
                f"in {name}: training diverged, and nothing was saved of it; lower "
                "training.learning_rate, or raise training.warmup_steps"
            )


def _by_device(marks: Sequence[Tensor]) -> list[Tensor]:
    """Marks together, so that each device is looked at once."""
    devices = {mark.device for mark in marks}
    return [torch.stack([m for m in marks if m.device == device]) for device in devices]


def _left_in(checkpoints: Path) -> str:
    left = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return f"; the last good checkpoint is {left[-1]}" if left else ""


@dataclass(frozen=True)
class Sign:
    """A way in which training goes wrong while every number is finite.

    Attributes:
        quantity: the logged mean it is seen in.
        seen: whether the means of the first and of the last logged entries show it.
        text: what it means and what to do, with ``{first}`` and ``{last}``.
    """

    quantity: str
    seen: Callable[[float, float], bool]
    text: str


SIGNS = (
    Sign(
        "leak",
        lambda first, last: last > 0.5 and last > first + 0.1,
        "{last:.0%} of the student's mass is outside the teacher's sets ({first:.0%} at first), "
        "where a loss on the sets sees nothing of it; add a cloning term, or choose a form of the "
        "objective with the normaliser of the whole vocabulary",
    ),
    Sign(
        "set_kl",
        lambda first, last: last > first + 0.5,
        "the student went away from the teacher: the KL on its sets rose from {first:.2f} to "
        "{last:.2f} nats; lower training.learning_rate or the weight of the temporal-difference "
        "term",
    ),
    Sign(
        "value",
        lambda first, last: abs(last - first) > 300.0,
        "soft values drift: from {first:.0f} to {last:.0f} nats, where half precision rounds to "
        "whole nats; lower training.learning_rate or discount, or take an objective whose values "
        "are anchored",
    ),
    Sign(
        "loss",
        lambda first, last: last > 2.0 * abs(first) + 2.0,
        "the loss rose from {first:.3g} to {last:.3g}: training diverges; lower "
        "training.learning_rate, or raise training.warmup_steps",
    ),
)


def signs_of_failure(history: Sequence[Logged]) -> list[str]:
    """What the logged means say is going wrong, in sentences; none where all is well.

    Args:
        history: what was logged so far, in order.

    Example:
        >>> for text in signs_of_failure([{"leak": 0.1}] * 5 + [{"leak": 0.9}] * 5):
        ...     print(text[:58])
        leak: 90% of the student's mass is outside the teacher's s
    """
    if len(history) < 2 * _WINDOW:
        return []
    found = []
    for sign in SIGNS:
        first, last = (
            [entry[sign.quantity] for entry in part if sign.quantity in entry]
            for part in (history[:_WINDOW], history[-_WINDOW:])
        )
        if first and last and sign.seen(fmean(first), fmean(last)):
            means = sign.text.format(first=fmean(first), last=fmean(last))
            found.append(f"{sign.quantity}: {means}")
    return found
