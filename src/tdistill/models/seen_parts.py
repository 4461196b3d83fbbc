"""Attention over rows that hold prompts and responses to them, by parts: no mask over the row.

A prompt attends to itself, a response to its prompt and to itself, each in the kernel for rows of
their own lengths. So nothing quadratic in the row is kept, and no pair of two responses computed.
The mask of :mod:`tdistill.models.prefix_sharing` says the same in a readable way.

What is seen reaches attention on a mask without any numbers, which networks hand on as it is: one
that attends otherwise, or loses what is on the mask, fails, which is found when it is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_NAME = "sdpa"
_SMALL = 1 << 20  # pairs of tokens whose mask may exist whole
_BLOCK = 256  # tokens that ask together where there are more pairs

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(query, key, value [n, heads, length, size], mask) to [n, length, heads, size]."""


class RowParts(NamedTuple):
    """What a row holds, from left to right.

    Attributes:
        start: columns of padding before it.
        pieces: lengths of a prompt and of the responses that follow it, for each prompt.
    """

    start: int
    pieces: tuple[tuple[int, ...], ...]


class SeenParts:
    """What the tokens of a batch of rows see, for layers of one kind.

    Args:
        rows: what each row holds; None: one sequence each, padded behind.
        window: positions that are seen, the token's own among them; None sees all.
        chunk: length of the chunks that attention stays within; None has no chunks.
    """

    def __init__(
        self,
        rows: Sequence[RowParts] | None,
        *,
        window: int | None = None,
        chunk: int | None = None,
    ) -> None:
        self.rows, self.window, self.chunk = rows, window, chunk
        self._masks: dict[tuple[int, int], Tensor | None] = {}

    def on_a_mask(self, device: torch.device) -> Tensor:
        """A mask for a network to hand on."""
        mask = torch.zeros(1, 1, 0, 0, dtype=torch.bool, device=device)
        mask.seen_parts = self  # pyright: ignore[reportAttributeAccessIssue]
        return mask

    def attend(
        self,
        plain: Attention,
        query: Float[Tensor, "B H L D"],
        key: Float[Tensor, "B G L D"],
        value: Float[Tensor, "B G L E"],
    ) -> Float[Tensor, "B L H E"]:
        """Attention of all heads, part by part; parts of the same lengths together."""
        if self.rows is None:
            return self._part(plain, query, key, value)
        groups: dict[tuple[int, int], list[tuple[tuple[int, int], tuple[Tensor, ...]]]] = {}
        for number, row in enumerate(self.rows):
            whole = query[number], key[number], value[number]
            for place, lengths, part in _parts(row, whole):
                groups.setdefault(lengths, []).append(((number, place), part))
        found: dict[tuple[int, int], Tensor] = {}
        for members in groups.values():
            asked, seen, values = (torch.stack([p[i] for _, p in members]) for i in range(3))
            out = self._part(plain, asked, seen, values)
            found |= zip((place for place, _ in members), out.unbind(), strict=True)
        blank = query.new_zeros(query.shape[2], query.shape[1], value.shape[3])
        return torch.stack(
            [_in_row(row, number, found, blank) for number, row in enumerate(self.rows)]
        )

    def _part(self, plain: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of tokens to those up to them, the last of what is seen.

        Of many pairs it is taken block by block, and a block again for its gradient: what is held
        for that grows with the tokens, where a kernel keeps the mask of all pairs.
        """
        asks, sees, device = query.shape[2], key.shape[2], query.device
        if not self._masks_needed(asks, sees) or asks * sees <= _SMALL:
            return plain(query, key, value, self._mask(asks, sees, device))

        def block(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            mask = self._make_mask(query.shape[2], key.shape[2], device)
            return plain(query, key, value, mask)

        parts = []
        for first in range(0, asks, _BLOCK):
            seen = sees - asks + min(first + _BLOCK, asks)
            ask = query[:, :, first : first + _BLOCK]
            made: Any = checkpoint(
                block,
                ask,
                key[:, :, :seen],
                value[:, :, :seen],
                use_reentrant=False,
                preserve_rng_state=False,
            )
            parts.append(made)
        return torch.cat(parts, dim=1)

    def _masks_needed(self, asks: int, sees: int) -> bool:
        """Whether a kernel does not know by itself what is seen."""
        narrow = any(limit is not None and limit < sees for limit in (self.window, self.chunk))
        return narrow or asks not in (1, sees)

    def _mask(self, asks: int, sees: int, device: torch.device) -> Bool[Tensor, "1 1 Q K"] | None:
        """For the last of some tokens; None where the kernel itself knows."""
        if (asks, sees) not in self._masks:
            self._masks[asks, sees] = self._make_mask(asks, sees, device)
        return self._masks[asks, sees]

    def _make_mask(self, asks: int, sees: int, device: torch.device) -> Tensor | None:
        if not self._masks_needed(asks, sees):
            return None
        key = torch.arange(sees, device=device)
        query = key[sees - asks :, None]
        seen = key <= query
        if self.window is not None:
            seen &= query - key < self.window
        if self.chunk is not None:
            seen &= query // self.chunk == key // self.chunk
        return seen[None, None]


def _parts(
    row: RowParts, whole: Sequence[Tensor]
) -> Iterator[tuple[int, tuple[int, int], tuple[Tensor, ...]]]:
    """Place in the row, (tokens that ask, tokens seen), and query, key and value of each part."""
    sizes = [length for piece in row.pieces for length in piece]
    rest = whole[0].shape[1] - row.start - sum(sizes)
    # One split, not a slice each: its gradient is one concatenation.
    query, key, value = (t.split([row.start, *sizes, rest], dim=1)[1:-1] for t in whole)
    place = 0
    for prompt, *responses in row.pieces:
        first = place
        yield place, (prompt, prompt), (query[place], key[place], value[place])
        for length in responses:
            place += 1
            seen = (torch.cat([t[first], t[place]], dim=1) for t in (key, value))
            yield place, (length, prompt + length), (query[place], *seen)
        place += 1


def _in_row(
    row: RowParts, number: int, found: dict[tuple[int, int], Tensor], blank: Tensor
) -> Tensor:
    count = sum(len(piece) for piece in row.pieces)
    parts = [found[number, place] for place in range(count)]
    used = row.start + sum(len(part) for part in parts)
    return torch.cat([blank[: row.start], *parts, blank[used:]])


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,  # some networks give it by its name
    *args: Any,
    **options: Any,
) -> tuple[Tensor, Any]:
    """What transformers calls under the name ``sdpa``."""
    parts: SeenParts | None = getattr(attention_mask, "seen_parts", None)
    if parts is None:
        return _before["plain"](module, query, key, value, attention_mask, *args, **options)

    def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return _before["plain"](module, query, key, value, mask, *args, **options)[0]

    return parts.attend(plain, query, key, value), None


_before: dict[str, Any] = {}


def attends_by_parts(config: Any) -> bool:
    """Whether a network's attention can be told what is seen; transformers then knows how.

    Args:
        config: of the network.
    """
    if config.get_text_config()._attn_implementation != _NAME:
        return False
    from transformers import AttentionInterface  # takes seconds to load

    known = AttentionInterface()
    if known[_NAME] is not _attend:
        _before["plain"] = known[_NAME]
        AttentionInterface.register(_NAME, _attend)
    return True
