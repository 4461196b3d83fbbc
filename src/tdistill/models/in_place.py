"""Reading with memory of our own for keys and values, in which rows begin and end at any time.

Rows end at the same column, padding is on their left. So the distance of two columns is the
distance of two tokens, and transformers' own masks, sliding windows included, hold for every row
whenever it began; a new row only has to be laid beside the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

from tdistill.models.language_model import LanguageModel
from tdistill.models.reading import PromptTokens, last_logits, left_padded

_SPARE = 64  # columns between two moves of a buffer: a move costs less than 2% of a step's reading
_GROWTH = 4  # or this part of the columns in use: what is moved grows with the tokens, not squared
_TOKENS = 4096  # prompt tokens of one forward pass, padding included: bounds its memory
_LONG = 1024  # tokens of a prompt that fills a device alone: kernels without a mask read it


@dataclass
class _Columns:
    """What is in use of the buffers of all layers: the first rows, a range of columns."""

    slots: int
    lengths: list[int] = field(default_factory=list)  # tokens of each row
    start: int = 0
    stop: int = 0

    @property
    def used(self) -> tuple[slice, slice, slice]:
        return slice(len(self.lengths)), slice(None), slice(self.start, self.stop)

    def trim(self) -> None:
        """Leave out the columns that are padding in every row."""
        self.start = self.stop - max(self.lengths, default=0)


class InPlaceLayer(CacheLayerMixin):
    """Keys and values of one layer in memory of its own; a step writes a column and copies none.

    The library's layers that grow copy everything at every token; its static layers read their
    whole length at every step, and rows cannot begin late in them.
    """

    is_sliding = False  # a sliding window is left to the mask

    def __init__(self, columns: _Columns) -> None:
        super().__init__()
        self.columns = columns

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers without columns, of the heads and sizes of what will be written."""
        slots = self.columns.slots
        self.keys = key_states[:1, :, :0].repeat(slots, 1, 1, 1)
        self.values = value_states[:1, :, :0].repeat(slots, 1, 1, 1)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Write the next columns; returns all that are in use, as views."""
        columns, count = self.columns, key_states.shape[2]
        rows, heads, past = columns.used
        new = slice(past.stop, past.stop + count)
        whole = rows, heads, slice(past.start, new.stop)
        assert self.keys is not None
        assert self.values is not None
        self.keys[rows, :, new], self.values[rows, :, new] = key_states, value_states
        return self.keys[whole], self.values[whole]

    def place(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Write whole rows, from row ``first`` on, that end where the others end."""
        rows = slice(first, first + len(keys))
        part = slice(self.columns.stop - keys.shape[2], self.columns.stop)
        assert self.keys is not None
        assert self.values is not None
        self.keys[rows, :, part], self.values[rows, :, part] = keys, values

    def copy_rows(self, sources: Tensor, targets: Tensor) -> None:
        """Write rows over others."""
        columns = self.columns.used[2]
        for buffer in (self.keys, self.values):
            assert buffer is not None
            buffer[targets, :, columns] = buffer[sources, :, columns]

    def move(self, stop: int, capacity: int) -> None:
        """Let the columns in use end at ``stop``, in new memory where there are too few."""
        self.keys = self._moved(self.keys, stop, capacity)
        self.values = self._moved(self.values, stop, capacity)

    def _moved(self, buffer: Tensor | None, stop: int, capacity: int) -> Tensor:
        assert buffer is not None
        used = buffer[self.columns.used]
        if buffer.shape[2] < capacity:
            # Zeros: padding has no weight in attention, but 0 times NaN would be NaN.
            new = buffer.new_zeros(*buffer.shape[:2], capacity, buffer.shape[3])
        else:
            new, used = buffer, used.clone()  # the ranges may overlap
        new[: used.shape[0], :, stop - used.shape[2] : stop] = used
        return new

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that attention sees, and the index of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.columns.stop - self.columns.start

    def get_max_length(self) -> int:
        """No limit: memory grows."""
        return -1


@dataclass(frozen=True, eq=False)
class _Read:
    """Prompts that have been read: keys and values of each layer, and logits of the last token."""

    prompts: Sequence[PromptTokens]
    layers: Sequence[tuple[Tensor, Tensor]]
    logits: Float[Tensor, "P V"]

    def last(self) -> _Read:
        """Only the last prompt, in memory of its own."""
        width = len(self.prompts[-1])
        layers = [tuple(t[-1:, :, -width:].clone() for t in layer) for layer in self.layers]
        return _Read(self.prompts[-1:], layers, self.logits[-1:].clone())  # pyright: ignore


class InPlaceReader:
    """Reads with buffers in which rows begin and end at any time."""

    refills = True

    def __init__(self, lm: LanguageModel, rows: int) -> None:
        self.lm, self.columns = lm, _Columns(rows)
        self.cache: Any = None
        self.capacity = 0
        self.held: _Read | None = None  # the last prompt: its further samples may come later
        self.past = torch.zeros(0, dtype=torch.long, device=lm.device)  # lengths, on the device
        self.by_hand = _masks_by_hand(lm.model.config.get_text_config())

    def begin(self, prompts: Sequence[PromptTokens]) -> Float[Tensor, "N V"]:
        """Add a row for each prompt; the one that was read last is not read again."""
        runs = [(prompt, len(list(same))) for prompt, same in groupby(prompts)]
        logits = []
        if self.held is not None and self.held.prompts[0] == runs[0][0]:
            logits.append(self._place(self.held, [runs[0][1]]))
            runs = runs[1:]
        for chunk in _chunks(runs):
            read = self._prefill([prompt for prompt, _ in chunk])
            logits.append(self._place(read, [count for _, count in chunk]))
            self.held = read.last()
        return torch.cat(logits)

    def keep(self, order: Sequence[int]) -> None:
        """Fill the places of dropped rows with others."""
        moved = [(source, place) for place, source in enumerate(order) if source != place]
        if moved:
            sources, targets = torch.tensor(moved, device=self.lm.device).unbind(1)
            for layer in self.cache.layers:
                layer.copy_rows(sources, targets)
        self.columns.lengths = [self.columns.lengths[source] for source in order]
        self.past = torch.tensor(self.columns.lengths, dtype=torch.long, device=self.lm.device)

    def read(self, tokens: Int[Tensor, " A"]) -> Float[Tensor, "A V"]:
        """One token a row, into the next column."""
        columns = self.columns
        self._make_room(0, 1)
        logits, _ = last_logits(
            self.lm,
            tokens[:, None],
            self.cache,
            mask=self._mask(columns.stop - columns.start),
            positions=self.past[:, None],
        )
        columns.stop += 1
        columns.lengths = [length + 1 for length in columns.lengths]
        self.past = self.past + 1
        return logits

    def _mask(self, width: int) -> Tensor | None:
        """What the next token of each row sees; None where no row is padded, which is fastest."""
        if min(self.columns.lengths) == width:
            return None
        place = torch.arange(width + 1, device=self.lm.device)
        seen = place >= (width - self.past)[:, None]
        return seen[:, None, None] if self.by_hand else seen.long()

    def _prefill(self, prompts: Sequence[PromptTokens]) -> _Read:
        ids, mask = left_padded(prompts, self.lm.pad_id, self.lm.device)
        cache: Any = DynamicCache()  # not told of sliding windows: their layers keep all tokens
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        if len({len(prompt) for prompt in prompts}) == 1:
            mask = None  # nothing is padded: kernels without a mask are faster
        logits, _ = last_logits(self.lm, ids, cache, mask=mask, positions=positions)
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return _Read(prompts, layers, logits)

    def _place(self, read: _Read, counts: Sequence[int]) -> Float[Tensor, "N V"]:
        first, columns = len(self.columns.lengths), self.columns
        copies = torch.repeat_interleave(torch.tensor(counts)).to(self.lm.device)
        new = [len(p) for p, count in zip(read.prompts, counts, strict=True) for _ in range(count)]
        self.past = torch.cat([self.past, torch.tensor(new, device=self.lm.device)])
        if self.cache is None:
            layers = [InPlaceLayer(columns) for _ in read.layers]
            for layer, (keys, values) in zip(layers, read.layers, strict=True):
                layer.lazy_initialization(keys, values)
            self.cache = Cache(layers=list(layers))
        self._make_room(read.layers[0][0].shape[2], 0)
        for layer, (keys, values) in zip(self.cache.layers, read.layers, strict=True):
            layer.place(first, keys[copies], values[copies])
        columns.lengths += new
        columns.trim()
        return read.logits[copies]

    def _make_room(self, before: int, after: int) -> None:
        """Columns for rows of ``before`` tokens that end with the others, and ``after`` more."""
        columns = self.columns
        columns.trim()
        if columns.stop >= before and columns.stop + after <= self.capacity:
            return
        stop = max(columns.stop - columns.start, before)
        self.capacity = max(self.capacity, stop + max(_SPARE, stop // _GROWTH))
        for layer in self.cache.layers:
            layer.move(stop, self.capacity)
        columns.stop = stop
        columns.trim()


def _masks_by_hand(config: Any) -> bool:
    """Whether attention takes what a token sees as it is, the same in every layer.

    Else transformers makes a mask for each kind of layer, and looks at the numbers for it.
    """
    kinds = getattr(config, "layer_types", None)
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    alike = limits == [None, None] if kinds is None else set(kinds) == {"full_attention"}
    return alike and config._attn_implementation == "sdpa"


def _chunks(runs: Sequence[tuple[PromptTokens, int]]) -> Iterator[list[tuple[PromptTokens, int]]]:
    """Runs whose prompts are read in one forward pass.

    Long ones of several lengths are not read together: padding would need a mask, with which Flash
    kernels do not work.
    """
    chunk: list[tuple[PromptTokens, int]] = []
    width = 0
    for prompt, count in runs:
        padded = chunk and max(width, len(prompt)) >= _LONG and len(prompt) != width
        width = max(width, len(prompt))
        if padded or (chunk and width * (len(chunk) + 1) > _TOKENS):
            yield chunk
            chunk, width = [], len(prompt)
        chunk.append((prompt, count))
    if chunk:
        yield chunk
