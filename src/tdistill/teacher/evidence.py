"""What is kept of the teacher at a step: its top-p set, its log-normaliser, its action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.checks import check
from tdistill.core import TopPSets, top_p_sets, truncate_by_gain
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.grid import round_log_probs, round_normaliser
from tdistill.teacher.tail import Tail, concatenate_tails, sample_tail, take_rows

RowSource = Literal["teacher", "reference", "student", "mixed"]
"""Teacher responses, ground truth, the student's own, sampled from teacher and student mixed."""

_TAIL = ("ids", "log_probs", "counts", "offsets")
ROW_SOURCES: tuple[RowSource, ...] = get_args(RowSource)


@dataclass(frozen=True)
class Row:
    """A prompt and a response to it, as token ids: what evidence is about.

    Attributes:
        prompt_ids: tokens of the prompt, at least one.
        response_ids: tokens of the response, at least one, the end token included where it ended.
        ended: whether the response finished with an end token (false: cut at a length limit).
        source: who wrote the response; no part of what the row is.
        behaviour: log-probability of each token under the policy that wrote it, nats, where known.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    ended: bool
    source: RowSource = field(default="teacher", compare=False, repr=False)
    behaviour: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a row without a state to act in, or without an action."""
        for name in ("prompt_ids", "response_ids"):
            check(name, len(getattr(self, name)) > 0, "at least one token", "none")


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
