"""What an engine lists at each step, and the evidence that follows from it.

An engine gives the K likeliest tokens with their log-probabilities over the vocabulary, and that of
the token that was chosen. Members, log-probabilities and mass of a top-p set are exact then; the
set is complete if the K tokens hold its mass. The log-normaliser is in no list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tdistill.core import TopPSets, log_set_mass, top_p_sets, truncate_by_gain
from tdistill.evidence.evidence import Evidence
from tdistill.teacher.cache.rounding import round_log_probs
from tdistill.teacher.config import CaptureConfig

_SUM_ERROR = 1e-3  # mass that a sum of float32 probabilities may have too much


@dataclass(frozen=True)
class Step:
    """What is listed at one step.

    Attributes:
        ids: the likeliest tokens, in descending order, ties by the lower id.
        log_probs: theirs, nats over the vocabulary.
        chosen: log-probability of the response's own token, nats.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    chosen: float


@dataclass(frozen=True)
class Answer:
    """A sampled response with what was listed at each of its steps."""

    ids: tuple[int, ...]
    ended: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Asked:
    """A response that is wanted.

    Attributes:
        prompt: its token ids.
        seed: of its random numbers.
    """

    prompt: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Asking:
    """How responses are asked for.

    Attributes:
        listed: how many tokens are listed at each step.
        sampling_top_p: p of the policy that they are drawn from.
        max_new_tokens: length limit.
        end_ids: tokens that end a response.
        vocabulary_size: ids that the tokenizer knows.
        temperature: divides the logits that are drawn from, never those that are listed; at 0 the
            likeliest token is taken.
    """

    listed: int
    sampling_top_p: float
    max_new_tokens: int
    end_ids: tuple[int, ...]
    vocabulary_size: int
    temperature: float = 1.0


def listed_step(entries: Mapping[int, float], chosen: int, listed: int, vocabulary: int) -> Step:
    """A step from its entries by token, checked.

    Tokens beyond the vocabulary are padding of the output layer; they are left out.

    Args:
        entries: log-probabilities, nats; that of the chosen token is among them.
        chosen: the response's own token.
        listed: how many were asked for; there may be one more, the chosen one.
        vocabulary: ids that the tokenizer knows.

    Raises:
        ValueError: the entries are no log-probabilities of that many tokens; the text says why.

    Example:
        >>> listed_step({7: -2.0, 5: -0.5, 2: -2.0}, 7, 2, 10).ids
        (5, 2)
    """
    if len(entries) < min(listed, vocabulary):
        raise ValueError(f"expected {listed} listed tokens a step, found {len(entries)}")
    if min(entries) < 0:
        raise ValueError(f"expected ids of tokens, found {min(entries)}")
    if chosen not in entries:
        raise ValueError(f"expected the log-probability of token {chosen}, found none")
    if not all(-9000.0 < value <= 1e-4 for value in entries.values()):  # NaN is refused too
        raise ValueError(
            "expected log-probabilities of the whole distribution, found some that are not or "
            "that are cut off; start the server with --logprobs-mode raw_logprobs"
        )
    order = sorted(entries, key=lambda token: (-entries[token], token))[:listed]
    kept = tuple(token for token in order if token < vocabulary)
    mass = math.fsum(math.exp(entries[token]) for token in order)
    if mass > 1.0 + _SUM_ERROR or not kept:
        raise ValueError(f"expected log-probabilities of at most 1 together, found {mass:.3f}")
    return Step(kept, tuple(min(entries[token], 0.0) for token in kept), min(entries[chosen], 0.0))


def listed_evidence(
    steps: Sequence[Step], config: CaptureConfig
) -> tuple[Evidence, tuple[int, ...]]:
    """The evidence of a response, and the steps whose sets are not complete.

    Args:
        steps: what was listed.
        config: captured mass, cap and least gain, as for a teacher at hand.

    Returns:
        Evidence whose log-normalisers are not a number, since they are unknown; the places of the
        sets that hold less than the captured mass because no more tokens were listed.
    """
    width = max(len(step.ids) for step in steps)
    log_probs = torch.full((len(steps), width), float("-inf"))
    ids = torch.zeros((len(steps), width), dtype=torch.long)
    for row, step in enumerate(steps):
        log_probs[row, : len(step.ids)] = torch.tensor(step.log_probs)
        ids[row, : len(step.ids)] = torch.tensor(step.ids)
    sets = top_p_sets(log_probs, config.captured_top_p, max_size=config.max_set_size)
    whole = TopPSets(ids[sets.step, sets.ids], sets.log_probs, sets.offsets)
    incomplete = _incomplete(whole, steps, config)
    if config.min_gain is not None:
        whole = truncate_by_gain(whole, config.min_gain)
    chosen = torch.tensor([step.chosen for step in steps])
    rounded = TopPSets(whole.ids, round_log_probs(whole.log_probs), whole.offsets)
    unknown = torch.full((len(steps),), float("nan"))
    return Evidence(rounded, unknown, round_log_probs(chosen)), incomplete


def _incomplete(sets: TopPSets, steps: Sequence[Step], config: CaptureConfig) -> tuple[int, ...]:
    """Sets that hold all that was listed, yet neither the mass nor as many as are kept."""
    mass = log_set_mass(sets.log_probs, sets.offsets).exp()
    all_of_it = sets.sizes == torch.tensor([len(step.ids) for step in steps])
    short = all_of_it & (mass < config.captured_top_p)
    if config.max_set_size is not None:
        short &= sets.sizes < config.max_set_size
    return tuple(short.nonzero().squeeze(1).tolist())
