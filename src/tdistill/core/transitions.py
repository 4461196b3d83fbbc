"""Steps and transitions of responses laid end to end, from their lengths alone.

A batch of B responses is one flat sequence of T steps. Whether a step is trained on and whether
its response ended there are two facts (method.md, section 1), never read off token identity: the
padding id of many models is their end id.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.core.ragged import TensorGroup


@dataclass(frozen=True, eq=False)
class Transitions(TensorGroup):
    """The Markov structure of T flat steps.

    Attributes:
        discount: gamma, 0 at the last step of a finished response.
        has_successor: whether the next flat step is the successor state of this one.
        can_bootstrap: false only at the last step of a response cut at the length limit, whose
            V(s') is unknown, and around a step that was taken out (:func:`split_at`): such a step
            is left out of every term that needs V(s').
    """

    discount: Float[Tensor, " T"]
    has_successor: Bool[Tensor, " T"]
    can_bootstrap: Bool[Tensor, " T"]


def transitions(
    lengths: Int[Tensor, " B"], ended: Bool[Tensor, " B"], *, discount: float
) -> Transitions:
    """Transitions of B responses laid end to end.

    Args:
        lengths: steps of each response, the end token included where there is one; each >= 1.
        ended: whether the response finished with its end token (true) or was cut (false).
        discount: gamma in [0, 1].

    Returns:
        The structure of the ``lengths.sum()`` flat steps.

    Example:
        >>> two = transitions(torch.tensor([2, 2]), torch.tensor([True, False]), discount=0.5)
        >>> two.discount.tolist()
        [0.5, 0.0, 0.5, 0.5]
        >>> two.can_bootstrap.tolist()
        [True, True, True, False]
    """
    total = int(lengths.sum())
    last = lengths.cumsum(0) - 1
    is_last = torch.zeros(total, dtype=torch.bool, device=lengths.device)
    is_last[last] = True
    finishes = torch.zeros_like(is_last)
    finishes[last] = ended
    gamma = torch.full((total,), float(discount), device=lengths.device)
    return Transitions(gamma.masked_fill(finishes, 0.0), ~is_last, ~is_last | finishes)


def ended_at_cuts(links: Transitions) -> Transitions:
    """The same where what follows a cut is in its reward: every row ends, none is cut.

    Example:
        >>> cut = transitions(torch.tensor([2]), torch.tensor([False]), discount=0.5)
        >>> ended_at_cuts(cut).discount.tolist(), ended_at_cuts(cut).can_bootstrap.tolist()
        ([0.5, 0.0], [True, True])
    """
    known = links.can_bootstrap
    return Transitions(links.discount * known, links.has_successor, torch.ones_like(known))


def split_at(links: Transitions, removed: Bool[Tensor, " T"]) -> Transitions:
    """The same with steps taken out: what comes before is cut there, what follows begins anew.

    Nothing is learned at a removed step, so nothing may be bootstrapped from its state either.

    Args:
        links: of whole responses.
        removed: steps that no term may use.

    Returns:
        Transitions in which each removed step is a cut response of its own.

    Example:
        >>> whole = transitions(torch.tensor([4]), torch.tensor([True]), discount=0.5)
        >>> split = split_at(whole, torch.tensor([False, False, True, False]))
        >>> split.has_successor.tolist()
        [True, False, False, False]
        >>> split.can_bootstrap.tolist()
        [True, False, False, True]
    """
    following = torch.cat([removed[1:], torch.zeros_like(removed[:1])])
    kept = ~(removed | (links.has_successor & following))
    return Transitions(links.discount, links.has_successor & kept, links.can_bootstrap & kept)


def successor(
    values: Float[Tensor, " T"], has_successor: Bool[Tensor, " T"]
) -> Float[Tensor, " T"]:
    """``V(s_{t+1})`` at every step: the value of the next flat step, 0 where there is none.

    Args:
        values: a value per step.
        has_successor: see :class:`Transitions`.

    Returns:
        The successor's value per step.

    Example:
        >>> successor(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, False])).tolist()
        [2.0, 0.0, 0.0]
    """
    following = torch.cat([values[1:], values.new_zeros(1)])[: values.numel()]
    return torch.where(has_successor, following, torch.zeros_like(following))


def first_steps(has_successor: Bool[Tensor, " T"]) -> Bool[Tensor, " T"]:
    """Where a response begins, or what follows a removed step: the states that no step leads to.

    Example:
        >>> first_steps(torch.tensor([True, False, False])).tolist()
        [True, False, True]
    """
    return torch.cat([torch.ones_like(has_successor[:1]), ~has_successor[:-1]])


def discounted_occupancy(
    has_successor: Bool[Tensor, " T"], *, discount: float
) -> Float[Tensor, " T"]:
    """Weight of every step in the discounted occupancy of its response, with mean 1 a response.

    ``w_t = L discount^t / sum_{k < L} discount^k`` for a response of L steps, so that a plain mean
    over its steps is a mean over its discounted occupancy.

    Args:
        has_successor: whether the next flat step belongs to the same response.
        discount: gamma in [0, 1]; 1 weighs all steps alike.

    Returns:
        A weight per step.

    Example:
        >>> discounted_occupancy(torch.tensor([True, False, False]), discount=0.5).tolist()
        [1.3333333730697632, 0.6666666865348816, 1.0]
    """
    begins = first_steps(has_successor)
    index = begins.long().cumsum(0) - 1
    steps = torch.arange(len(begins), device=begins.device)
    start = (steps * begins).cummax(0).values
    power = float(discount) ** (steps - start).to(torch.get_default_dtype())
    none = torch.zeros_like(power)  # as many places as there could be responses
    lengths, sums = (none.index_add(0, index, of) for of in (torch.ones_like(power), power))
    return power * (lengths / sums)[index]
