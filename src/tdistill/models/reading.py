"""What every reader of sequences is, and the forward pass they share."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.models.language_model import LanguageModel
from tdistill.models.probes import remembered

PromptTokens = Sequence[int]


class Reader(Protocol):
    """A model that reads rows; all logits are of the last token of each row, float32."""

    lm: LanguageModel

    @property
    def refills(self) -> bool:
        """Whether rows can begin beside others that have already read on."""
        ...

    def begin(self, prompts: Sequence[PromptTokens]) -> Float[Tensor, "N V"]:
        """Add a row for each prompt behind the present ones; equal neighbours are read once."""
        ...

    def keep(self, order: Sequence[int]) -> None:
        """Row i becomes what row ``order[i]`` was; rows that are not named are dropped."""
        ...

    def read(self, tokens: Int[Tensor, " A"]) -> Float[Tensor, "A V"]:
        """Append one token to each row."""
        ...


def last_logits(
    lm: LanguageModel,
    ids: Tensor,
    cache: Any,
    *,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Float[Tensor, "N V"], Any]:
    """Logits of the last token of each row over the tokens that exist, and the cache after it.

    Args:
        lm: the model.
        ids: new tokens of each row.
        cache: of the tokens before; None lets the model make the kind that it uses.
        mask: 1 on tokens, those before included; None where no row is padded.
        positions: of the new tokens; None lets the model count.
    """
    model: Any = lm.model
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    accepted = arguments_of(model)
    if positions is not None and "position_ids" in accepted:
        inputs["position_ids"] = positions
    if cache is not None:
        inputs["cache"] = cache
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1
    out = model(**inputs, use_cache=True)
    made = cache if cache is not None else getattr(out, "cache", None)
    return out.logits[:, -1, : lm.vocabulary_size].float(), made


@remembered
def arguments_of(network: Any) -> frozenset[str]:
    """Names of what a network's forward takes; to ask at every token takes as long as a kernel."""
    return frozenset(inspect.signature(network.forward).parameters)


def left_padded(
    prompts: Sequence[PromptTokens], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Prompts that end at the same column, and the mask of their tokens."""
    width = max(len(p) for p in prompts)
    ids = [[pad_id] * (width - len(p)) + list(p) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
