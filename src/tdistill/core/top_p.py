"""Top-p candidate sets (2.1): which tokens the reduced action space of a state contains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core.ragged import Ragged
from tdistill.core.segments import (
    UNIT,
    exact_units,
    kept_offsets,
    offsets_of,
    row_index,
    segment_cumsum,
)
from tdistill.errors import InvalidValueError

_CHUNK = 1 << 21  # numbers looked at together: memory beside the input stays small
_QUEUED_CHUNK = 1 << 26  # likewise where every chunk waits for a device
_BINS = 512
_FINEST, _DEEPEST = 1e-3, 64.0  # nats that all bins cover together, least and most
_GROUP = 16  # fewest tokens in a group whose maximum bounds a capped set


@dataclass(frozen=True, eq=False)
class TopPSets(Ragged):
    """The candidate sets of T steps as compressed rows.

    Attributes:
        ids: token ids, each row in descending order of probability, ties by lower id.
        log_probs: teacher log-probabilities in nats, normalised over the full vocabulary.
        offsets: row t is ``[offsets[t]:offsets[t + 1]]``.
    """

    ids: Int[Tensor, " M"]
    log_probs: Float[Tensor, " M"]
    offsets: Int[Tensor, " R"]

    def row(self, t: int) -> tuple[Int[Tensor, " K"], Float[Tensor, " K"]]:
        """Token ids and log-probabilities of step ``t``; negative ``t`` counts from the end.

        Raises:
            IndexError: if ``t`` is not a step.
        """
        if not -len(self) <= t < len(self):
            raise IndexError(f"expected a step in [0, {len(self)}), found {t}")
        start, stop = self.offsets[t % len(self)], self.offsets[t % len(self) + 1]
        return self.ids[start:stop], self.log_probs[start:stop]


def top_p_sets(
    log_probs: Float[Tensor, "T V"], set_top_p: float, *, max_size: int | None = None
) -> TopPSets:
    """The smallest set of most probable tokens whose mass reaches ``set_top_p``, per step (2.1).

    A_p(s) has at least one member; ties are broken by the lower token id; ``set_top_p = 1`` gives
    every token of non-zero probability. Mass is summed exactly (:func:`exact_units`) and compared
    in the input's precision, at least float32.

    No vocabulary is sorted. All tokens below ``(1 - p) / V`` together hold less than 1 - p, so no
    member is among them; a histogram of the others, over log-probability, shows the bin where the
    mass reaches p; only tokens down to that bin are sorted. Both cuts keep ties together, hence the
    sets are those of a full sort: ``top_p_set`` in ``tests/core/padded.py`` is the readable form.

    Args:
        log_probs: log-probabilities in nats over the vocabulary; half precision becomes float32.
        set_top_p: mass p in (0, 1].
        max_size: hard cap K on the members of a set; a capped set may hold less mass than p.

    Returns:
        The sets, as compressed rows.

    Raises:
        InvalidValueError: for p outside (0, 1], a cap below 1, NaN, positive log-probabilities, or
            a row without any token of non-zero probability.

    Example:
        >>> sets = top_p_sets(torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log(), 0.7)
        >>> sets.row(0)[0].tolist()
        [1, 3]
    """
    _check_arguments(log_probs, set_top_p, max_size)
    if log_probs.dtype in (torch.float16, torch.bfloat16):
        log_probs = log_probs.float()
    vocabulary = log_probs.shape[1]
    with torch.no_grad():  # which tokens are members has no gradient
        chunk = _CHUNK if log_probs.device.type == "cpu" else _QUEUED_CHUNK
        height = max(1, chunk // vocabulary)
        cap = vocabulary if max_size is None else min(max_size, vocabulary)
        firsts = range(0, max(1, len(log_probs)), height)
        parts = [
            _members(rows, first, set_top_p, cap)
            for first, rows in zip(firsts, log_probs.split(height), strict=True)
        ]
        sizes = torch.cat([sizes for _, sizes in parts])
        offsets = offsets_of(sizes)
        ids = torch.cat([ids for ids, _ in parts])
    place = row_index(offsets, len(ids)) * vocabulary + ids
    return TopPSets(ids, log_probs.flatten().index_select(0, place), offsets)


def truncate(sets: TopPSets, set_top_p: float) -> TopPSets:
    """Sets of a smaller p: sets nest, so A_p is a prefix of every larger captured set (2.2).

    A row whose captured mass is below ``set_top_p`` (a cap was binding) is kept whole.

    Args:
        sets: sets captured at a mass of at least ``set_top_p``.
        set_top_p: mass p in (0, 1].

    Returns:
        The shortened rows.

    Raises:
        InvalidValueError: for p outside (0, 1].

    Example:
        >>> captured = top_p_sets(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), 0.9)
        >>> truncate(captured, 0.5).ids.tolist()
        [0]
    """
    check_top_p(set_top_p)
    return sets if set_top_p == 1.0 else sets.keep(_within(sets, set_top_p))


def truncated_sizes(sets: TopPSets, set_top_p: float) -> Int[Tensor, " T"]:
    """How many members :func:`truncate` leaves of every row, the first ones.

    Example:
        >>> captured = top_p_sets(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), 0.9)
        >>> truncated_sizes(captured, 0.6).tolist()
        [2]
    """
    check_top_p(set_top_p)
    if set_top_p == 1.0:
        return sets.sizes
    return kept_offsets(_within(sets, set_top_p), sets.offsets).diff()


def _within(sets: TopPSets, set_top_p: float) -> Tensor:
    """Marks of the members that a smaller p leaves."""
    mass = segment_cumsum(sets.log_probs.exp(), sets.offsets).to(sets.log_probs.dtype)
    before = torch.cat([mass.new_zeros(1), mass])[:-1]
    return (before < set_top_p) | _first_members(sets)


def truncate_by_gain(sets: TopPSets, min_gain: float) -> TopPSets:
    """Sets cut where one more member adds little: member k stays if ``log(m_k / m_{k-1}) > g``.

    ``m_k`` is the mass of the k most probable members. The gain is ``log(1 + p_k / m_{k-1})``; p
    descends and m grows, so gains descend and ``-log m_k`` is convex in k. Hence this rule is the
    Lagrangian solution of "the smallest mean set for a given mean of ``-log m``", the loss per
    step in (3.3): over all choices of a prefix in each state it is least in
    ``size + (-log m) / g``. A flat state, where members buy little, gets a smaller share of the
    mass than under one p for all states; a peaked one gets more.

    Args:
        sets: captured sets, each row in descending order.
        min_gain: g, nats; the first member always stays, and 0 keeps every member with mass.

    Returns:
        The shortened rows.

    Raises:
        InvalidValueError: for a negative gain.

    Reference:
        Everett, 1963, Operations Research 11(3), "Generalized Lagrange multiplier method".

    Example:
        >>> captured = top_p_sets(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), 0.9)
        >>> truncate_by_gain(captured, 0.2).ids.tolist()  # gains: log 1.5, log 1.17, log 1.14
        [0, 1]
    """
    if not min_gain >= 0.0:
        raise InvalidValueError(f"min_gain: expected at least 0 nats, found {min_gain}")
    probs = sets.log_probs.exp().double()
    mass_before = segment_cumsum(sets.log_probs.exp(), sets.offsets) - probs
    # p_k > m_{k-1} (e^g - 1): descending against ascending, so what stays is a prefix.
    return sets.keep((probs > mass_before * math.expm1(min_gain)) | _first_members(sets))


def check_top_p(set_top_p: float) -> None:
    """Refuse a mass outside (0, 1].

    Example:
        >>> check_top_p(1.5)
        Traceback (most recent call last):
        tdistill.errors.InvalidValueError: set_top_p: expected a mass in (0, 1], found 1.5
    """
    if not 0.0 < set_top_p <= 1.0:
        raise InvalidValueError(f"set_top_p: expected a mass in (0, 1], found {set_top_p}")


def _first_members(sets: TopPSets) -> Tensor:
    """Marks of the first member of every row; that of an empty row is its successor's."""
    marks = torch.zeros(len(sets.ids) + 1, dtype=torch.bool, device=sets.ids.device)
    return marks.index_fill(0, sets.offsets[:-1], True)[:-1]


def _check_arguments(log_probs: Tensor, set_top_p: float, max_size: int | None) -> None:
    check_top_p(set_top_p)
    if log_probs.dim() != 2 or log_probs.shape[1] == 0:
        raise InvalidValueError(
            f"log_probs: expected shape [T, V] with V > 0, found {list(log_probs.shape)}; "
            "flatten batch and step first"
        )
    if max_size is not None and max_size < 1:
        raise InvalidValueError(f"max_size: expected at least 1 or None, found {max_size}")


def _are_sound(largest: Tensor) -> Tensor:
    """Largest log-probability of each row: a number, at most 0, and not minus infinity."""
    return (largest > float("-inf")) & (largest <= 1e-3)


def _refuse(largest: Tensor, first: int) -> None:
    """Say which row is not sound; ``first`` is the number of the first of these rows."""
    problems = {
        "NaN": largest.isnan(),
        "no token of non-zero probability": largest == float("-inf"),
        "a log-probability above 0 (pass log_softmax of the logits)": largest > 1e-3,
    }
    for problem, rows in problems.items():
        if rows.any():
            step = first + int(rows.nonzero()[0])
            raise InvalidValueError(f"log_probs: step {step} has {problem}")


def _members(rows: Tensor, first: int, set_top_p: float, cap: int) -> tuple[Tensor, Tensor]:
    """Ids of the members of each row's set, end to end, in order; sizes of the sets."""
    largest = rows.amax(1)
    floor = _floor(rows, largest, set_top_p, cap)
    ids, values, offsets, enough = _candidates(rows, largest, floor, set_top_p, cap)
    # Both in one look: every look waits until the device has done all that it was given.
    sound, reached = torch.stack([_are_sound(largest).all(), enough.all()]).tolist()
    if not sound:
        _refuse(largest, first)
    if set_top_p < 1.0 and not reached:  # a row whose whole mass is below p is kept
        floor = torch.where(enough, floor, torch.finfo(rows.dtype).min)
        ids, values, offsets, _ = _candidates(rows, largest, floor, set_top_p, cap)
    step = row_index(offsets, len(ids))
    order = _order(step, values)
    keep = torch.arange(len(ids), device=ids.device) < (offsets[:-1] + cap)[step]
    if set_top_p < 1.0:
        mass = segment_cumsum(values.index_select(0, order).exp(), offsets).to(rows.dtype)
        before = torch.cat([mass.new_zeros(1), mass]).index_fill(0, offsets[:-1], 0.0)[:-1]
        keep &= before < set_top_p
    sizes = kept_offsets(keep, offsets).diff()
    return ids.index_select(0, order[keep]), sizes


def _floor(rows: Tensor, largest: Tensor, set_top_p: float, cap: int) -> Tensor:
    """A log-probability for each row that no member is below, if the row sums to at least p."""
    lowest, vocabulary = torch.finfo(rows.dtype).min, rows.shape[1]
    tail = (1.0 - set_top_p) / vocabulary
    floor = torch.full_like(largest, math.log(tail) if tail > 0.0 else lowest)
    if cap <= vocabulary // _GROUP:
        # Each of these groups has a token at least as large as the smallest of their maxima.
        groups = rows[:, : vocabulary // cap * cap].unflatten(1, (-1, cap))
        floor = floor.maximum(groups.amax(1).amin(1))
    return floor.minimum(largest).clamp(min=lowest)


def _candidates(
    rows: Tensor, largest: Tensor, floor: Tensor, set_top_p: float, cap: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens that may be members: whole bins of log-probability, from the largest down.

    Returns their ids, values and offsets, and whether those above the floor are enough for each
    row: they reach the mass or the cap.
    """
    num_rows, vocabulary = rows.shape
    starts = torch.arange(num_rows + 1, device=rows.device) * vocabulary
    place = (rows >= floor[:, None]).flatten().nonzero().squeeze(1)
    values = rows.flatten().index_select(0, place)
    step = row_index(torch.searchsorted(place, starts), len(place))
    scale = _BINS / (largest - floor).clamp(min=_FINEST, max=_DEEPEST)
    top = largest.clamp(max=0.0)  # rows that are not sound are only refused later
    depth = (top.index_select(0, step) - values) * scale.index_select(0, step)
    bins = depth.clamp(min=0, max=_BINS - 1).long() + step * _BINS
    none = bins.new_zeros(num_rows * _BINS)
    count = none.index_add(0, bins, torch.ones_like(bins)).view(num_rows, _BINS).cumsum(1)
    enough = count >= cap
    if set_top_p < 1.0:
        units = none.index_add(0, bins, exact_units(values.exp()))
        mass = units.view_as(count).cumsum(1).double() * UNIT
        enough |= mass.to(rows.dtype) >= set_top_p
    last = (~enough).sum(1) + torch.arange(num_rows, device=rows.device) * _BINS
    keep = (bins <= last.index_select(0, step)).nonzero().squeeze(1)
    place = place.index_select(0, keep)
    offsets = torch.searchsorted(place, starts)
    ids = place - starts.index_select(0, row_index(offsets, len(place)))
    return ids, values.index_select(0, keep), offsets, enough[:, -1]


def _order(step: Tensor, values: Tensor) -> Tensor:
    """The order of members by step, then descending value; ties stay as they are."""
    if values.dtype == torch.float64:
        order = values.sort(descending=True, stable=True).indices
        return order[step[order].sort(stable=True).indices]
    # Step and value in one integer, for one sort: a float's bits, all but the sign turned over
    # where it is negative, are ordered as the floats are; + 0.0 makes -0.0 equal to 0.0.
    bits = (values + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFF_FFFF)
    return ((step << 32) - bits.long()).sort(stable=True).indices
