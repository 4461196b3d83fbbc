"""What is kept of the teacher at a step: its top-p set, its log-normaliser, its action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core import TensorGroup, TopPSets
from tdistill.evidence.rows import Row
from tdistill.evidence.tail import Tail


@dataclass(frozen=True, eq=False)
class Evidence(TensorGroup):
    """The teacher at T flat steps (responses laid end to end).

    Attributes:
        sets: top-p sets; log-probabilities in nats over the full vocabulary, rounded as stored.
        log_normaliser: log-sum-exp of the teacher's logits, nats, rounded as stored;
            Q_T = log_probs + log_normaliser. Not a number where the teacher did not give it.
        action_log_prob: log-probability of the response's own token, rounded as stored.
        tail: tokens sampled off these sets, or None; sets that are cut no longer fit it.
    """

    sets: TopPSets
    log_normaliser: Float[Tensor, " T"]
    action_log_prob: Float[Tensor, " T"]
    tail: Tail | None = None

    def cut(self, sets: TopPSets) -> Evidence:
        """The same steps with smaller sets; the tail does not hold what they have lost."""
        return Evidence(sets, self.log_normaliser, self.action_log_prob)


def concatenate(parts: Sequence[Evidence]) -> Evidence:
    """Evidence laid end to end in the given order; with tails where all parts have them."""
    tails = [part.tail for part in parts if part.tail is not None]
    return Evidence(
        TopPSets.concatenate([part.sets for part in parts]),
        torch.cat([part.log_normaliser for part in parts]),
        torch.cat([part.action_log_prob for part in parts]),
        Tail.concatenate(tails) if len(tails) == len(parts) else None,
    )


def take_steps(evidence: Evidence, steps: Int[Tensor, " S"]) -> Evidence:
    """The evidence of chosen steps, in the order chosen."""
    return Evidence(
        evidence.sets.take(steps),
        evidence.log_normaliser[steps],
        evidence.action_log_prob[steps],
        None if evidence.tail is None else evidence.tail.take(steps),
    )


def take_responses(evidence: Evidence, lengths: Sequence[int]) -> list[Evidence]:
    """The evidence of each response of a batch, given their lengths."""
    steps = torch.arange(len(evidence.sets))
    return [take_steps(evidence, part) for part in steps.split(list(lengths))]


def evidence_from_tensors(tensors: Mapping[str, Tensor]) -> Evidence:
    """What :meth:`Evidence.named_tensors` was called on; other names are ignored."""

    def group(name: str) -> dict[str, Tensor]:
        return {n.removeprefix(name): t for n, t in tensors.items() if n.startswith(name)}

    tail = group("tail.")
    return Evidence(
        TopPSets(**group("sets.")),
        tensors["log_normaliser"],
        tensors["action_log_prob"],
        Tail(**tail) if tail else None,
    )


class EvidenceSource(Protocol):
    """Evidence of responses, whoever keeps it."""

    def evidence(self, rows: Sequence[Row], *, set_top_p: float | None = None) -> Evidence:
        """Evidence of the rows laid end to end, sets cut to ``set_top_p`` (None: as captured)."""
        ...
