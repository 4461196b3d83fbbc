"""Where the tokens of a batch lie: one row a response, or one row for the responses of a prompt.

Responses to one prompt repeat it. Shared, it is computed once: its responses follow it in one row,
each at the positions it would have alone, and each sees the prompt and itself. A network that
attends by mask and position gives the same numbers either way, to rounding.

Reference: prefix sharing in training, e.g. Wang et al. 2025, "Prefix Grouper: Efficient GRPO
Training through Shared-Prefix Forward" (arXiv:2506.05433).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from tdistill.core import TensorGroup
from tdistill.models.prefix_sharing import PrefixSharing
from tdistill.models.seen_parts import RowParts

TOKENS_AT_ONCE = 16_384
"""Most tokens of a pass without gradients: what is held grows with them, and with nothing else."""

# Tokens of a row at which attention costs about as much as the rest of a layer: 5 hidden sizes.
_BALANCE = 4096


class Tokens(Protocol):
    """A prompt and a response to it."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """At least one token."""
        ...

    @property
    def response_ids(self) -> tuple[int, ...]:
        """At least one token."""
        ...


@dataclass(frozen=True, eq=False)
class Layout(TensorGroup):
    """Rows of tokens, and where each of the T steps is read.

    Attributes:
        input_ids: prompts and responses (the last action is predicted, never read).
        attention_mask: 1 on tokens, 0 on padding.
        row: row of each step.
        position: place in that row whose output predicts the action of the step.
        sharing: how rows that hold several sequences are to be read; None: they hold one each.
        before: padding before the sequence of each row; None: there is none.
    """

    input_ids: Int[Tensor, "B L"]
    attention_mask: Int[Tensor, "B L"]
    row: Int[Tensor, " T"]
    position: Int[Tensor, " T"]
    sharing: PrefixSharing | None = None
    before: Int[Tensor, " B"] | None = None


def pack(rows: Sequence[Tokens], *, pad_id: int, padding_side: str = "right") -> Layout:
    """A row for every response.

    Args:
        rows: prompts with responses.
        pad_id: fills the rest; no mask depends on it.
        padding_side: ``right`` or ``left``.
    """
    # The last action is predicted, never read, so it is not an input.
    sequences = [(*r.prompt_ids, *r.response_ids[:-1]) for r in rows]
    width = max(len(s) for s in sequences)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    row, position = [], []
    for i, (sequence, r) in enumerate(zip(sequences, rows, strict=True)):
        start = width - len(sequence) if padding_side == "left" else 0
        ids[i, start : start + len(sequence)] = torch.tensor(sequence)
        mask[i, start : start + len(sequence)] = 1
        first = start + len(r.prompt_ids) - 1
        position += range(first, first + len(r.response_ids))
        row += [i] * len(r.response_ids)
    before = width - mask.sum(1) if padding_side == "left" else None
    return Layout(ids, mask, torch.tensor(row), torch.tensor(position), before=before)


def lay_out(
    rows: Sequence[Tokens],
    pad_id: int,
    *,
    padding_side: str = "right",
    share: bool = True,
    most_tokens: int | None = None,
) -> Layout:
    """Tokens and steps of a batch, prompts shared where that makes it smaller.

    Steps are those of the responses laid end to end, in the order of ``rows``, however they lie.

    Args:
        rows: prompts with responses.
        pad_id: fills the rest.
        padding_side: ``right`` or ``left``.
        share: whether the responses to a prompt may follow it in one row.
        most_tokens: of a row, where one response and its prompt are not longer.
    """
    apart = [[_Piece(rows, (i,))] for i in range(len(rows))]
    shared = _fill(_pieces(rows, most_tokens)) if share else apart
    if _area(shared) >= _area(apart):
        return pack(rows, pad_id=pad_id, padding_side=padding_side)
    width = max(sum(piece.width for piece in line) for line in shared)
    columns: tuple[list[list[int]], ...] = ([], [], [], [])
    places: dict[int, list[tuple[int, int]]] = {}
    for number, line in enumerate(shared):
        spare = width - sum(piece.width for piece in line)
        start = spare if padding_side == "left" else 0
        cells, found = _write(rows, line)
        for i, indices in found.items():
            places[i] = [(number, start + index) for index in indices]
        for column, values, blank in zip(columns, cells, (pad_id, 0, 0, 0), strict=True):
            pad = [blank] * spare
            column.append([*pad, *values] if padding_side == "left" else [*values, *pad])
    ids, position_ids, segment, prompt = (torch.tensor(column) for column in columns)
    steps = torch.tensor([place for i in range(len(rows)) for place in places[i]])
    parts = tuple(_parts(rows, line, width, padding_side) for line in shared)
    sharing = PrefixSharing(position_ids, segment, prompt, parts)
    return Layout(ids, (segment > 0).long(), steps[:, 0], steps[:, 1], sharing)


def separate(layout: Layout) -> Layout:
    """A shared layout without sharing, for networks that cannot take it: a row for every segment.

    Prompts get a row of their own, in which first actions are read, beside the copies that precede
    their responses.
    """
    sharing = layout.sharing
    if sharing is None:
        return layout
    rows: list[Tensor] = []
    number = torch.zeros_like(layout.input_ids)
    for line, (segment, prompt) in enumerate(zip(sharing.segment, sharing.prompt, strict=True)):
        for own in range(1, int(segment.max()) + 1):
            mine = segment == own
            number[line, mine] = len(rows)
            first = prompt[mine][:1]
            rows.append(layout.input_ids[line, mine | (segment == first)])
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    at = (layout.row, layout.position)
    return Layout(ids, mask, number[at], sharing.position_ids[at])


def padded_behind(layout: Layout) -> Layout:
    """A layout of one sequence a row with the padding before a row moved behind it.

    Example:
        >>> rows = [Pair((5,), (6, 7)), Pair((8,), (9,))]
        >>> padded_behind(pack(rows, pad_id=0, padding_side="left")).input_ids.tolist()
        [[5, 6], [8, 0]]
    """
    mask, before = layout.attention_mask, layout.before
    if before is None:
        return layout
    width = mask.shape[1]
    source = (torch.arange(width, device=mask.device) + before[:, None]) % width
    ids, mask = layout.input_ids.gather(1, source), mask.gather(1, source)
    return Layout(ids, mask, layout.row, layout.position - before[layout.row])


def cut(rows: Sequence[Tokens], most_tokens: int | None, *, share: bool) -> list[list[int]]:
    """Parts of a batch whose rows, with padding, have at most so many tokens; like go with like.

    A row that is longer goes alone. Every row is in one part.

    Args:
        rows: prompts with responses.
        most_tokens: of a part, padding included; None leaves the batch whole.
        share: whether the parts will be laid out with shared prompts.

    Returns:
        Indices of the rows of each part, the longest first.

    Example:
        >>> cut([Pair((1,), (2,) * n) for n in (1, 9, 2, 3, 40)], 9, share=False)
        [[4], [1], [3, 2, 0]]
    """
    if most_tokens is None:
        return [list(range(len(rows)))]
    apart = [_Piece(rows, (i,)) for i in range(len(rows))]
    pieces = _pieces(rows, most_tokens) if share else apart
    parts: list[list[_Piece]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.width):
        if not parts or (len(parts[-1]) + 1) * parts[-1][0].width > most_tokens:
            parts.append([])
        parts[-1].append(piece)
    return [[i for piece in part for i in piece.members] for part in parts]


def evenly_chosen(rows: Sequence[Tokens], tokens: int) -> list[Tokens]:
    """Rows evenly spread that have about so many tokens, one at least."""
    total = sum(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    count = min(len(rows), max(1, round(len(rows) * tokens / total)))
    return [rows[i * len(rows) // count] for i in range(count)]


def alike(rows: Sequence[Tokens]) -> list[int]:
    """Indices in an order where like lengths, and the responses of a prompt, are neighbours.

    Example:
        >>> alike([Pair((1,), (2,) * 9), Pair((3,), (2,)), Pair((1,), (2,)), Pair((4,), (2,) * 5)])
        [1, 3, 0, 2]
    """
    lengths = [len(r.prompt_ids) + len(r.response_ids) for r in rows]
    longest: dict[tuple[int, ...], int] = {}
    for r, length in zip(rows, lengths, strict=True):
        longest[r.prompt_ids] = max(length, longest.get(r.prompt_ids, 0))
    key = [(longest[r.prompt_ids], r.prompt_ids) for r in rows]
    return sorted(range(len(rows)), key=lambda i: key[i])


def in_passes(
    rows: Sequence[Tokens], batch_size: int, *, most_tokens: int = TOKENS_AT_ONCE
) -> Iterator[list[int]]:
    """Rows for one forward pass after the other, like with like: so many, and so many tokens.

    Args:
        rows: prompts with responses.
        batch_size: most rows of a pass.
        most_tokens: of a pass, padding included; a row that is longer goes alone.

    Example:
        >>> list(in_passes([Pair((1,), (2,) * n) for n in (1, 9, 2, 40)], 3, most_tokens=30))
        [[3], [1, 2], [0]]
    """
    order = alike(rows)
    for first in range(0, len(rows), batch_size):
        group = order[first : first + batch_size]
        for part in cut([rows[i] for i in group], most_tokens, share=True):
            yield [group[i] for i in part]


class Pair(NamedTuple):
    """A prompt and a response, where nothing else is known of them."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


class _Piece:
    """Responses that follow one copy of their prompt."""

    def __init__(self, rows: Sequence[Tokens], members: Sequence[int]) -> None:
        self.members = tuple(members)
        self.prompt_ids = rows[self.members[0]].prompt_ids
        self.width = len(self.prompt_ids) + sum(len(rows[i].response_ids) - 1 for i in members)


def _pieces(rows: Sequence[Tokens], most_tokens: int | None) -> list[_Piece]:
    """The responses of each prompt, cut evenly where a row of all of them would be too long.

    With attention that costs, a token of the row, 1 / c of the rest of a layer, k responses of R
    tokens after a prompt of P cost (P + k R) (1 + (P + k R) / c), least a response where
    k R = sqrt(P (P + c)).
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, r in enumerate(rows):
        groups.setdefault(r.prompt_ids, []).append(i)
    pieces = []
    for prompt, members in groups.items():
        room = isqrt(len(prompt) * (len(prompt) + _BALANCE))
        if most_tokens is not None:
            room = min(room, most_tokens - len(prompt))
        lengths = [len(rows[i].response_ids) - 1 for i in members]
        pieces += [_Piece(rows, [members[j] for j in deal]) for deal in _deal(lengths, room)]
    return pieces


def _deal(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices dealt to as few hands as hold at most ``room`` each, as evenly as can be."""
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for count in range(max(1, -(-sum(lengths) // max(room, 1))), len(lengths) + 1):
        hands: list[list[int]] = [[] for _ in range(count)]
        loads = [0] * count
        for i in longest_first:
            lightest = loads.index(min(loads))
            hands[lightest].append(i)
            loads[lightest] += lengths[i]
        if max(loads) <= room:
            return [sorted(hand) for hand in hands if hand]
    return [[i] for i in range(len(lengths))]


def _fill(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Rows as wide as the widest piece, each filled with pieces while they fit."""
    pieces = sorted(pieces, key=lambda piece: -piece.width)
    lines: list[list[_Piece]] = []
    spare: list[int] = []
    for piece in pieces:
        line = next((n for n, left in enumerate(spare) if left >= piece.width), len(lines))
        if line == len(lines):
            lines.append([])
            spare.append(pieces[0].width)
        lines[line].append(piece)
        spare[line] -= piece.width
    return lines


def _area(lines: Sequence[Sequence[_Piece]]) -> int:
    return len(lines) * max(sum(piece.width for piece in line) for line in lines)


def _parts(
    rows: Sequence[Tokens], line: Sequence[_Piece], width: int, padding_side: str
) -> RowParts:
    """Lengths of what a row holds; the last action of a response is never read."""
    pieces = []
    for piece in line:
        read = (len(rows[i].response_ids) - 1 for i in piece.members)
        pieces.append((len(piece.prompt_ids), *(length for length in read if length)))
    spare = width - sum(map(sum, pieces))
    return RowParts(spare if padding_side == "left" else 0, tuple(pieces))


def _write(
    rows: Sequence[Tokens], line: Sequence[_Piece]
) -> tuple[tuple[list[int], ...], dict[int, list[int]]]:
    """Ids, positions, segments and prompts of a row, and where the steps of each response are."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    prompts: list[int] = []
    places: dict[int, list[int]] = {}
    number = 0

    def add(tokens: Sequence[int], position: int, prompt: int) -> None:
        ids.extend(tokens)
        positions.extend(range(position, position + len(tokens)))
        segments.extend([number] * len(tokens))
        prompts.extend([prompt] * len(tokens))

    for piece in line:
        number += 1
        prompt, size = number, len(piece.prompt_ids)
        add(piece.prompt_ids, 0, prompt)
        last = len(ids) - 1
        for i in piece.members:
            read = rows[i].response_ids[:-1]
            number += bool(read)
            places[i] = [last, *range(len(ids), len(ids) + len(read))]
            add(read, size, prompt)
    return (ids, positions, segments, prompts), places
