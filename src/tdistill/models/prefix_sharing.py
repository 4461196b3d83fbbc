"""How rows that hold a prompt and several responses to it are read: positions and what is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tdistill.core import TensorGroup
from tdistill.errors import ModelError
from tdistill.models.seen_parts import RowParts, SeenParts

_MASKED = ("eager", "sdpa", "flex_attention")  # attention that takes any mask


@dataclass(frozen=True, eq=False)
class PrefixSharing(TensorGroup):
    """How rows that hold several sequences are to be read.

    Segments are prompts and responses, numbered from 1 in each row; padding is segment 0.

    Attributes:
        position_ids: position of each token in its own sequence.
        segment: segment of each token.
        prompt: segment of the prompt that each token continues; a prompt's token has its own.
        rows: the lengths of what each row holds.
    """

    position_ids: Int[Tensor, "B L"]
    segment: Int[Tensor, "B L"]
    prompt: Int[Tensor, "B L"]
    rows: tuple[RowParts, ...] = ()

    def sees(
        self, *, window: int | None = None, chunk: int | None = None
    ) -> Callable[[Tensor, Tensor, Tensor, Tensor], Bool[Tensor, ...]]:
        """Whether a token sees another, as a function of (row, head, query index, key index).

        Windows and chunks of local attention count positions, not places in the row.

        Args:
            window: positions that are seen, the token's own among them; None sees all.
            chunk: length of the chunks that attention stays within; None has no chunks.

        Example:
            >>> segment, prompt = torch.tensor([[1, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.long)
            >>> two = PrefixSharing(torch.tensor([[0, 1, 2, 2]]), segment, prompt)
            >>> index, zero = torch.arange(4), torch.tensor(0)
            >>> two.sees()(zero, zero, index[:, None], index).int()
            tensor([[1, 0, 0, 0],
                    [1, 1, 0, 0],
                    [1, 1, 1, 0],
                    [1, 1, 0, 1]], dtype=torch.int32)
        """
        position, segment, prompt = self.position_ids, self.segment, self.prompt

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            theirs = segment[row, key]
            seen = (segment[row, query] == theirs) | (prompt[row, query] == theirs)
            seen = seen & (key <= query)
            if window is not None:
                seen = seen & (position[row, query] - position[row, key] < window)
            if chunk is not None:
                seen = seen & (position[row, query] // chunk == position[row, key] // chunk)
            return seen

        return sees

    def masks(self, config: Any, dtype: torch.dtype) -> Any:
        """What the network takes as its attention mask: one, or one for each type of layer.

        Args:
            config: the network's configuration, which says how it attends.
            dtype: of its weights.

        Raises:
            ModelError: for attention that is not by mask and position.
        """
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        config = config.get_text_config()
        kind = config._attn_implementation
        if kind not in _MASKED:
            raise ModelError(f"attention is {kind}, which takes no mask; sharing needs {_MASKED}")

        def mask(**limits: int | None) -> Any:
            return ALL_MASK_ATTENTION_FUNCTIONS[kind](
                batch_size=len(self.segment),
                q_length=self.segment.shape[1],
                kv_length=self.segment.shape[1],
                mask_function=self.sees(**limits),
                allow_is_causal_skip=False,
                dtype=dtype,
                device=self.segment.device,
                config=config,
            )

        return _for_layers(config, mask)

    def parts(self, config: Any) -> Any:
        """The same as :meth:`masks` for attention by parts: see ``seen_parts``."""
        return parts_of(config, self.rows, self.segment.device)


def parts_of(config: Any, rows: Sequence[RowParts] | None, device: torch.device) -> Any:
    """What a network takes as its attention mask that attends by parts.

    Args:
        config: the network's configuration.
        rows: what each row holds; None: one sequence each, padded behind.
        device: of the network.

    Raises:
        ModelError: for attention that is not by mask and position.
    """

    def parts(**limits: int | None) -> Tensor:
        return SeenParts(rows, **limits).on_a_mask(device)

    return _for_layers(config.get_text_config(), parts)


def _for_layers(config: Any, make: Callable[..., Any]) -> Any:
    """What is made for the limits of all layers, or a dictionary of it by type of layer."""
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    types = getattr(config, "layer_types", None)
    if types is None:  # every layer alike
        return make(window=window, chunk=None if window else chunk)
    known: dict[str, dict[str, int | None]] = {
        "full_attention": {},
        "sliding_attention": {"window": window},
        "chunked_attention": {"chunk": chunk},
    }
    if not set(types) <= set(known):
        raise ModelError(f"layers are {sorted(set(types))}; sharing needs {sorted(known)}")
    return {kind: make(**known[kind]) for kind in set(types)}
