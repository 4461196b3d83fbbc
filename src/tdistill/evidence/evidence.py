"""What is kept of the teacher at a step: its top-p set, its log-normaliser, its action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core import TopPSets
from tdistill.evidence.rows import Row
from tdistill.evidence.tail import Tail, concatenate_tails, take_rows

_TAIL = ("ids", "log_probs", "counts", "offsets")


@dataclass(frozen=True, eq=False)
class Evidence:
    """The teacher at T flat steps (responses laid end to end).

    Attributes:
        sets: top-p sets; log-probabilities in nats over the full vocabulary, rounded as stored.
        log_normaliser: log-sum-exp of the teacher's logits, nats, rounded as stored;
            Q_T = log_probs + log_normaliser.
        action_log_prob: log-probability of the response's own token, rounded as stored.
        tail: tokens sampled off these sets, or None; sets that are cut no longer fit it.
    """

    sets: TopPSets
    log_normaliser: Float[Tensor, " T"]
    action_log_prob: Float[Tensor, " T"]
    tail: Tail | None = None

    def to(self, device: torch.device | str) -> Evidence:
        """The same evidence on another device."""
        normaliser, action = self.log_normaliser.to(device), self.action_log_prob.to(device)
        tail = None if self.tail is None else self.tail.to(device)
        return Evidence(self.sets.to(device), normaliser, action, tail)

    def cut(self, sets: TopPSets) -> Evidence:
        """The same steps with smaller sets; the tail does not hold what they have lost."""
        return Evidence(sets, self.log_normaliser, self.action_log_prob)


def concatenate(parts: Sequence[Evidence]) -> Evidence:
    """Evidence laid end to end in the given order."""
    sizes = torch.cat([part.sets.sizes for part in parts])
    sets = TopPSets(
        torch.cat([part.sets.ids for part in parts]),
        torch.cat([part.sets.log_probs for part in parts]),
        torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
    )
    normaliser = torch.cat([part.log_normaliser for part in parts])
    tails = [part.tail for part in parts if part.tail is not None]
    tail = concatenate_tails(tails) if len(tails) == len(parts) else None
    return Evidence(sets, normaliser, torch.cat([part.action_log_prob for part in parts]), tail)


def take_steps(evidence: Evidence, steps: Int[Tensor, " S"]) -> Evidence:
    """The evidence of chosen steps, in the order chosen."""
    members, offsets = take_rows(evidence.sets.offsets, steps)
    sets = TopPSets(evidence.sets.ids[members], evidence.sets.log_probs[members], offsets)
    tail = evidence.tail
    if tail is not None:
        chosen, rows = take_rows(tail.offsets, steps)
        tail = Tail(tail.ids[chosen], tail.log_probs[chosen], tail.counts[chosen], rows)
    return Evidence(sets, evidence.log_normaliser[steps], evidence.action_log_prob[steps], tail)


def take_responses(evidence: Evidence, lengths: Sequence[int]) -> list[Evidence]:
    """The evidence of each response of a batch, given their lengths."""
    steps = torch.arange(len(evidence.sets))
    return [take_steps(evidence, part) for part in steps.split(list(lengths))]


def evidence_tensors(evidence: Evidence) -> dict[str, Tensor]:
    """The tensors of evidence by name, for files and for counting bytes."""
    tail = evidence.tail
    sampled = {} if tail is None else {name: getattr(tail, name) for name in _TAIL}
    return {
        "set_ids": evidence.sets.ids,
        "set_log_probs": evidence.sets.log_probs,
        "set_offsets": evidence.sets.offsets,
        "log_normaliser": evidence.log_normaliser,
        "action_log_prob": evidence.action_log_prob,
        **{f"tail_{name}": tensor for name, tensor in sampled.items()},
    }


def evidence_from_tensors(tensors: Mapping[str, Tensor]) -> Evidence:
    """What :func:`evidence_tensors` was made from."""
    sets = TopPSets(*(tensors[name] for name in ("set_ids", "set_log_probs", "set_offsets")))
    tail = None
    if "tail_ids" in tensors:
        tail = Tail(**{name: tensors[f"tail_{name}"] for name in _TAIL})
    return Evidence(sets, tensors["log_normaliser"], tensors["action_log_prob"], tail)


class EvidenceSource(Protocol):
    """Evidence of responses, whoever keeps it."""

    def evidence(self, rows: Sequence[Row], *, set_top_p: float | None = None) -> Evidence:
        """Evidence of the rows laid end to end, sets cut to ``set_top_p`` (None: as captured)."""
        ...
