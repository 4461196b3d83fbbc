"""A whole cache at once, for counting: its sets, and what they lose when they are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.core import TopPSets, log_set_mass, sampled_gap_bound
from tdistill.errors import CacheError
from tdistill.teacher.cache import Cache
from tdistill.teacher.layout import member_bytes
from tdistill.teacher.packed import evidence_of
from tdistill.teacher.plain import is_plain


@dataclass(frozen=True, eq=False)
class Contents:
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

    def bound(self, sets: TopPSets, *, discount: float) -> float:
        """(3.3) averaged over the states of the cached responses, which end, nats."""
        losses = self.losses(sets)
        return float(sampled_gap_bound(losses, self.lengths, discount=discount).mean())

    def bytes_per_step(self, sets: TopPSets) -> float:
        """An estimate of the bytes a step if only these sets had been captured.

        All else that a step takes (its token, normaliser, size, tail, its share of the prompt) is
        as it is now.
        """
        kept, whole = (member_bytes(part, self.vocabulary_size) for part in (sets, self.sets))
        saved = self.members_bytes * (1 - kept / whole)
        return (self.bytes - saved) / max(len(self.sets), 1)


def contents_of(cache: Cache) -> Contents:
    """Read a whole cache.

    Raises:
        CacheError: for a cache without rows.
    """
    if len(cache) == 0:
        raise CacheError(f"{cache.folder}: expected a cache with responses, found an empty one")
    columns = list(cache.shard_columns())
    names = [name for name in columns[0] if all(name in others for others in columns)]
    joined = {name: np.concatenate([c[name] for c in columns]) for name in names}
    evidence = evidence_of(joined)
    identity = cache.manifest.identity
    tail = evidence.tail
    plain = sum(c["set_ids"].nbytes + c["set_log_probs"].nbytes for c in columns if is_plain(c))
    packed = [evidence_of(c).sets for c in columns if not is_plain(c)]
    return Contents(
        evidence.sets,
        action=torch.from_numpy(joined["response_ids"].astype(np.int64)),
        lengths=torch.from_numpy(joined["lengths"].astype(np.int64)),
        ended=torch.from_numpy(joined["ended"]),
        tail_sizes=torch.zeros_like(evidence.sets.sizes) if tail is None else tail.sizes,
        bytes=sum(shard.bytes for shard in cache.manifest.shards),
        captured_top_p=identity.captured_top_p,
        vocabulary_size=identity.vocabulary_size,
        members_bytes=plain + sum(member_bytes(s, identity.vocabulary_size) for s in packed),
    )
