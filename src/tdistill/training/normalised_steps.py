"""Which steps of a batch are normalised over the vocabulary, where only a share of them is."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from tdistill.core import evenly_spread
from tdistill.evidence.batch import Batch
from tdistill.models.generation import seed_of, uniforms


def with_normalised_steps(batch: Batch, share: float, *, seed: int, update: int) -> Batch:
    """The batch with the steps that are normalised: evenly spread in each row, begun at random.

    Where a row begins depends on the seed, the update and its own tokens: not on the rows beside
    it, nor on the process that has it.

    Args:
        batch: on the host.
        share: of the steps, in (0, 1]; 1 takes them all.
        seed: of the training.
        update: number of the present one.
    """
    if share == 1.0:
        return batch
    lengths = torch.zeros_like(batch.source).index_add(0, batch.row, torch.ones_like(batch.row))
    place = torch.arange(len(batch.row)) - (lengths.cumsum(0) - lengths)[batch.row]
    own = torch.zeros(len(lengths), dtype=torch.float64)
    own = own.index_add(0, batch.row, uniforms(batch.action, place))
    begin = uniforms(torch.tensor(seed_of("normaliser", seed)), torch.tensor(update))
    offset = ((own + begin) % 1.0)[batch.row]
    steps: Int[Tensor, " S"] = evenly_spread(place, offset, share=share).nonzero().squeeze(1)
    return replace(batch, normalised=steps)
