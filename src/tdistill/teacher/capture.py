"""Evidence in the making: the teacher's full distribution, cut to what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core import TopPSets, top_p_sets, truncate_by_gain
from tdistill.evidence.evidence import Evidence, concatenate, take_responses, take_steps
from tdistill.evidence.tail import Tail
from tdistill.teacher.cache.rounding import round_log_probs, round_normaliser
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.tail_sampling import sample_tail


@dataclass(frozen=True, eq=False)
class Capture:
    """The teacher at T steps while its full distribution is still at hand.

    Attributes:
        sets: what will be stored, log-probabilities rounded.
        log_probs: the full distribution, nats.
        log_normaliser: log-sum-exp of the logits, nats, rounded.
        tail: sampled tail tokens, log-probabilities rounded, or None.
    """

    sets: TopPSets
    log_probs: Float[Tensor, "T V"]
    log_normaliser: Float[Tensor, " T"]
    tail: Tail | None = None

    def action_log_prob(self, actions: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
        """Rounded log-probability of one token a step."""
        return round_log_probs(self.log_probs.gather(1, actions[:, None]).squeeze(1))

    def evidence(self, actions: Int[Tensor, " T"]) -> Evidence:
        """What is kept, given the action of each step."""
        action = self.action_log_prob(actions)
        return Evidence(self.sets, self.log_normaliser, action, self.tail)


def capture(
    logits: Float[Tensor, "T V"],
    config: CaptureConfig,
    uniform: Float[Tensor, "T N"] | None = None,
) -> Capture:
    """The stored sets of T steps, with the distribution they come from.

    Args:
        logits: teacher's logits over the shared vocabulary, nats.
        config: captured mass, cap and least gain.
        uniform: ``config.tail_samples`` numbers in [0, 1) a step, where there are any.

    Returns:
        Sets, log-probabilities, log-normaliser, and the sampled tail.
    """
    logits = logits.float()  # sums of a vocabulary in bfloat16 are off by .03 nats and more
    log_normaliser = logits.logsumexp(-1)
    log_probs = logits - log_normaliser[:, None]
    sets = top_p_sets(log_probs, config.captured_top_p, max_size=config.max_set_size)
    if config.min_gain is not None:
        sets = truncate_by_gain(sets, config.min_gain)
    rounded = TopPSets(sets.ids, round_log_probs(sets.log_probs), sets.offsets)
    tail = None
    if uniform is not None:
        drawn = sample_tail(log_probs, sets, uniform.to(log_probs.device))
        tail = Tail(drawn.ids, round_log_probs(drawn.log_probs), drawn.counts, drawn.offsets)
    return Capture(rounded, log_probs, round_normaliser(log_normaliser), tail)


@dataclass
class Recorder:
    """Collects evidence step by step while responses are sampled; it stays where it was made."""

    rows: list[Tensor] = field(default_factory=list)
    steps: list[Evidence] = field(default_factory=list)

    def add(self, rows: Int[Tensor, " A"], evidence: Evidence) -> None:
        """Keep one step of the active rows."""
        self.rows.append(rows)
        self.steps.append(evidence)

    def by_row(self) -> list[Evidence]:
        """The evidence of every row, its steps in order, on the CPU."""
        rows, whole = torch.cat(self.rows).cpu(), concatenate(self.steps).to("cpu")
        return take_responses(
            take_steps(whole, rows.argsort(stable=True)), rows.bincount().tolist()
        )
