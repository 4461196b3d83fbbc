"""A whole cache at once, for counting: its sets, and what they lose when they are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.core import TopPSets, log_set_mass, loss_of_unseen_steps, sampled_gap_bound
from tdistill.errors import CacheError
from tdistill.evidence.evidence import concatenate
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.row_layout import member_bytes


@dataclass(frozen=True, eq=False)
class AllSteps:
    """The numbers of every response of a cache, laid end to end.

    Attributes:
        sets: as captured.
        action: the response's token at each step.
        lengths: steps of each response.
        ended: whether each response ended.
        tail_sizes: distinct sampled tail tokens of each step; 0 where none were sampled.
        bytes: size of all shards.
        captured_top_p: mass of the sets.
        vocabulary_size: of the teacher.
        members_bytes: the part of ``bytes`` that set members take.
    """

    sets: TopPSets
    action: Int[Tensor, " T"]
    lengths: Int[Tensor, " B"]
    ended: Bool[Tensor, " B"]
    tail_sizes: Int[Tensor, " T"]
    bytes: int
    captured_top_p: float
    vocabulary_size: int
    members_bytes: float

    def losses(self, sets: TopPSets) -> Float[Tensor, " T"]:
        """``-log m`` of each step, nats, under these or smaller sets."""
        return -log_set_mass(sets.log_probs, sets.offsets).clamp(max=0.0)

    def bound(self, sets: TopPSets, *, discount: float, as_cached: bool = False) -> float:
        """(3.3) averaged over the states of the cached responses, nats.

        Args:
            sets: these or smaller ones.
            discount: gamma.
            as_cached: as if a response that was cut had ended there, which is less than the bound
                of the teacher; else it goes on at the mean loss until it ends as often as others.
        """
        losses = self.losses(sets)
        ending = float(self.ended.double().sum() / max(len(losses), 1))
        behind = loss_of_unseen_steps(float(losses.mean()), ending, discount=discount)
        cut = ~self.ended & (not as_cached)
        unseen = torch.zeros(len(cut), dtype=losses.dtype).masked_fill(cut, behind)
        found = sampled_gap_bound(losses, self.lengths, discount=discount, unseen=unseen)
        return float(found.mean())

    def bytes_per_step(self, sets: TopPSets) -> float:
        """An estimate of the bytes a step if only these sets had been captured.

        All else that a step takes (its token, normaliser, size, tail, its share of the prompt) is
        as it is now.
        """
        kept, whole = (member_bytes(part, self.vocabulary_size) for part in (sets, self.sets))
        saved = self.members_bytes * (1 - kept / whole)
        return (self.bytes - saved) / max(len(self.sets), 1)


def all_steps(cache: Cache) -> AllSteps:
    """Read a whole cache.

    Raises:
        CacheError: for a cache without rows.
    """
    if len(cache) == 0:
        raise CacheError(f"{cache.folder}: expected a cache with responses, found an empty one")
    rows, shards = cache.rows(), [shard.evidence() for shard in cache.shards()]
    evidence, identity = concatenate(shards), cache.manifest.identity
    vocabulary, tail = identity.vocabulary_size, evidence.tail
    actions = np.concatenate([np.asarray(row.response_ids) for row in rows])
    return AllSteps(
        evidence.sets,
        action=torch.from_numpy(actions),
        lengths=torch.tensor([len(row.response_ids) for row in rows]),
        ended=torch.tensor([row.ended for row in rows]),
        tail_sizes=torch.zeros_like(evidence.sets.sizes) if tail is None else tail.sizes,
        bytes=sum(shard.bytes for shard in cache.manifest.shards),
        captured_top_p=identity.captured_top_p,
        vocabulary_size=vocabulary,
        members_bytes=sum(member_bytes(shard.sets, vocabulary) for shard in shards),
    )
