"""Readers of many sequences, token by token, and which of them is right for a model.

Faster ones rely on what the model keeps of the past; whether that holds is tried when a reader is
opened, not guessed from the architecture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tdistill.errors import one_line
from tdistill.models.head_form import own_logits
from tdistill.models.in_place import InPlaceReader
from tdistill.models.language_model import LanguageModel, inner_model
from tdistill.models.positions import position_limit
from tdistill.models.probes import (
    FAILURES,
    block_length,
    disagreement,
    has_untried_blocks,
    on_trial,
    probe_tokens,
)
from tdistill.models.reading import PromptTokens, Reader, last_logits, left_padded
from tdistill.models.row_trials import check_reading

_Opener = Callable[[LanguageModel, int], Reader]


def open_reader(lm: LanguageModel, rows: int) -> Reader:
    """The fastest reader that gives what a pass over each whole row gives; tried once a model.

    Args:
        lm: the model.
        rows: the most rows there will be at a time.

    Returns:
        A reader; a slow one is named in a warning.

    Raises:
        ModelError: the model is not causal.
        NonFiniteError: its logits are no numbers.
    """
    network = inner_model(lm.model)
    if network not in _OPENERS:
        _OPENERS[network] = _find_opener(lm)
    return _OPENERS[network](lm, rows)


_OPENERS: WeakKeyDictionary[Any, _Opener] = WeakKeyDictionary()


def _find_opener(lm: LanguageModel) -> _Opener:
    check_reading(lm.model)
    why = ""
    for opener in _candidates(lm):
        problem = _reading_problem(lm, opener)
        if problem is None:
            return opener
        why = why or problem
    warnings.warn(
        f"{type(inner_model(lm.model)).__name__}: what it keeps of the past gives other logits "
        f"than a pass over the whole row ({why}); every token is sampled by reading its row anew, "
        "which is slow",
        stacklevel=4,
    )
    return lambda lm, rows: RereadingReader(lm)


def _candidates(lm: LanguageModel) -> list[_Opener]:
    """From the fastest to the slowest; the last alone where no trial is long enough to tell."""
    if has_untried_blocks(inner_model(lm.model)):
        return [lambda lm, rows: GroupedReader(lm)]
    try:
        kinds = {type(layer) for layer in DynamicCache(config=lm.model.config).layers}
    except FAILURES:
        kinds = {object}
    openers: list[_Opener] = [
        lambda lm, rows: LibraryReader(lm),
        lambda lm, rows: LibraryReader(lm, masks_decoding=False),
        lambda lm, rows: GroupedReader(lm),
    ]
    plain = kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
    return [InPlaceReader, *openers] if plain else openers


def _reading_problem(lm: LanguageModel, opener: _Opener) -> str | None:
    """What a reader makes wrong of a small ragged batch whose rows move, end and begin; or None."""
    network: Any = inner_model(lm.model)
    block, limit = block_length(network), position_limit(network)
    if limit is not None and block + 8 > limit.tokens:
        block = 0
    sizes = block + 8, 5, block // 2 + 6
    rows = [probe_tokens(network, size, skip=i) for i, size in enumerate(sizes)]
    own = [own_logits(network, row)[:, : lm.vocabulary_size] for row in rows]
    found, expected = [], []
    lengths = [len(row) - 3 for row in rows]  # of the prompts

    def step(active: Sequence[int], logits: Tensor) -> None:
        found.append(logits)
        expected.extend(own[row][lengths[row] - 1] for row in active)

    def read(reader: Reader, active: Sequence[int]) -> None:
        tokens = torch.tensor([rows[row][lengths[row]] for row in active], device=lm.device)
        for row in active:
            lengths[row] += 1
        step(active, reader.read(tokens))

    with on_trial(network):
        try:
            reader, active = opener(lm, 3), [0, 1, 2]
            step(active, reader.begin([rows[row][: lengths[row]] for row in active]))
            read(reader, active)
            reader.keep([2, 1])
            active = [2, 1]
            read(reader, active)
            if reader.refills:
                step([0], reader.begin([rows[0][: lengths[0]]]))
                active.append(0)
            read(reader, active)
        except FAILURES as error:
            return one_line(error)
    return disagreement(torch.cat(found), torch.stack(expected), network.dtype)


class LibraryReader:
    """Reads with the cache that the model makes for itself: prompts once, but all rows together.

    Args:
        lm: the model.
        masks_decoding: whether the model wants to be told of the padding at every token; one whose
            only memory is a recurrent state does not.
    """

    refills = False

    def __init__(self, lm: LanguageModel, *, masks_decoding: bool = True) -> None:
        self.lm, self.masks_decoding = lm, masks_decoding
        self.cache: Any = None
        self.mask = torch.empty(0, 0, dtype=torch.long, device=lm.device)

    def begin(self, prompts: Sequence[PromptTokens]) -> Float[Tensor, "N V"]:
        """The rows of a new batch."""
        runs = [(prompt, len(list(same))) for prompt, same in groupby(prompts)]
        copies = torch.repeat_interleave(torch.tensor([count for _, count in runs]))
        copies = copies.to(self.lm.device)
        ids, mask = left_padded([p for p, _ in runs], self.lm.pad_id, self.lm.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits, self.cache = last_logits(self.lm, ids, None, mask=mask, positions=positions)
        self.mask = mask[copies]
        self.cache.reorder_cache(copies)
        return logits[copies]

    def keep(self, order: Sequence[int]) -> None:
        """Select rows."""
        rows = torch.tensor(order, dtype=torch.long, device=self.lm.device)
        self.cache.reorder_cache(rows)
        self.mask = self.mask[rows]

    def read(self, tokens: Int[Tensor, " A"]) -> Float[Tensor, "A V"]:
        """One token a row."""
        past = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        mask = self.mask if self.masks_decoding else None
        logits, self.cache = last_logits(
            self.lm, tokens[:, None], self.cache, mask=mask, positions=past
        )
        return logits


class GroupedReader:
    """Reads without padding: rows of one length and beginning are a group, with its own cache."""

    refills = True

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.caches: list[Any] = []  # of each group
        self.places: list[tuple[int, int]] = []  # group of each row, and its place there

    def begin(self, prompts: Sequence[PromptTokens]) -> Float[Tensor, "N V"]:
        """A group for each length."""
        logits, places = [torch.empty(0)] * len(prompts), [(0, 0)] * len(prompts)
        for length in sorted({len(prompt) for prompt in prompts}):
            rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
            runs = [(p, len(list(same))) for p, same in groupby(prompts[i] for i in rows)]
            ids = torch.tensor([list(p) for p, _ in runs], device=self.lm.device)
            made, cache = last_logits(self.lm, ids, None)
            copies = torch.repeat_interleave(torch.tensor([count for _, count in runs]))
            cache.reorder_cache(copies.to(self.lm.device))
            for place, (row, copy) in enumerate(zip(rows, copies.tolist(), strict=True)):
                logits[row], places[row] = made[copy], (len(self.caches), place)
            self.caches.append(cache)
        self.places += places
        return torch.stack(logits)

    def keep(self, order: Sequence[int]) -> None:
        """Select rows of each group; groups without rows go."""
        kept, caches, places = [self.places[row] for row in order], [], [(0, 0)] * len(order)
        for group, cache in enumerate(self.caches):
            rows = [row for row, (number, _) in enumerate(kept) if number == group]
            if rows:
                inside = [kept[row][1] for row in rows]
                cache.reorder_cache(torch.tensor(inside, device=self.lm.device))
                for place, row in enumerate(rows):
                    places[row] = len(caches), place
                caches.append(cache)
        self.caches, self.places = caches, places

    def read(self, tokens: Int[Tensor, " A"]) -> Float[Tensor, "A V"]:
        """One token a row, a pass for each group."""
        logits = [torch.empty(0)] * len(tokens)
        for group, cache in enumerate(self.caches):
            rows = [row for row, (number, _) in enumerate(self.places) if number == group]
            rows.sort(key=lambda row: self.places[row][1])
            made, self.caches[group] = last_logits(self.lm, tokens[rows][:, None], cache)
            for row, own in zip(rows, made, strict=True):
                logits[row] = own
        return torch.stack(logits)


class RereadingReader:
    """Reads every row anew for every token, rows of one length together: slow, and always right."""

    refills = True

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.rows: list[list[int]] = []

    def begin(self, prompts: Sequence[PromptTokens]) -> Float[Tensor, "N V"]:
        """Equal neighbours are read once."""
        self.rows += [list(prompt) for prompt in prompts]
        return self._logits(self.rows[len(self.rows) - len(prompts) :])

    def keep(self, order: Sequence[int]) -> None:
        """Select rows."""
        self.rows = [list(self.rows[row]) for row in order]

    def read(self, tokens: Int[Tensor, " A"]) -> Float[Tensor, "A V"]:
        """Whole rows."""
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._logits(self.rows)

    def _logits(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "A V"]:
        model: Any = self.lm.model
        found: dict[tuple[int, ...], Tensor] = {}
        distinct = dict.fromkeys(map(tuple, rows))
        for length in sorted({len(row) for row in distinct}):
            group = [row for row in distinct if len(row) == length]
            ids = torch.tensor(group, device=self.lm.device)
            logits = model(input_ids=ids, use_cache=False).logits[:, -1, : self.lm.vocabulary_size]
            found |= dict(zip(group, logits.float(), strict=True))
        return torch.stack([found[tuple(row)] for row in rows])
