"""The policy that made responses and the teacher, read at the states of those responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tdistill.core import (
    TopPSets,
    forward_kl_terms,
    log_rest,
    log_set_mass,
    reverse_kl_terms,
    segment_sum,
    top_p_sets,
    with_rest,
)
from tdistill.evaluation.places import sums_by_place
from tdistill.evaluation.served import AnyModel, ServedTeacher
from tdistill.evidence.evidence import take_steps
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import TOKENS_AT_ONCE, in_passes, lay_out
from tdistill.models.score_forms import StepScores
from tdistill.models.scores import step_scores

_CHUNK = 128  # steps whose full logits exist at once


OF_TEACHER = ("teacher_log_prob",)
WHOLE = (*OF_TEACHER, "entropy", "reverse_kl", "forward_kl")
LISTED = (*OF_TEACHER, "entropy", "drawn_reverse_kl", "kl_with_rest")


@dataclass(frozen=True, eq=False)
class OwnStates:
    """What a model and its teacher say at every state of the model's own responses.

    Of a teacher whose whole distribution is at hand what is summed is itself a sum over the
    vocabulary, so it has no noise of the token that was drawn. A served teacher gives the
    likeliest tokens and the one that was drawn.

    Attributes:
        by_place: sums over the steps of each place (`sums_by_place`) of each response, nats, by
            name [rows, places]: ``teacher_log_prob`` of the response under the teacher;
            ``entropy`` of the policy that chose the tokens, greedily of the model at temperature
            1; ``reverse_kl`` of that policy from the teacher; ``forward_kl`` of the teacher from
            the model, both at temperature 1. Beside a served teacher the last two are
            ``drawn_reverse_kl``, the drawn tokens' log-probability under that policy less that
            under the teacher, and ``kl_with_rest``, the forward KL on the members of the
            teacher's set and one outcome for all other tokens. Of a served teacher itself only
            the first is known.
        tokens_by_place: steps of each place [rows, places].
    """

    by_place: Mapping[str, NDArray[np.float64]]
    tokens_by_place: NDArray[np.float64]

    def total(self, name: str) -> NDArray[np.float64]:
        """Sums over all steps of each response [rows]."""
        return self.by_place[name].sum(axis=1)

    @property
    def tokens(self) -> NDArray[np.float64]:
        """Steps of each response [rows]."""
        return self.tokens_by_place.sum(axis=1)


@torch.no_grad()
def read_own_states(
    rows: Sequence[Row],
    decoding: Decoding,
    model: AnyModel,
    teacher: AnyModel,
    *,
    vocabulary_size: int,
    batch_size: int,
) -> OwnStates:
    """One pass of model and teacher over responses of the model.

    Args:
        rows: the responses.
        decoding: how they were made.
        model: who made them; a served one is the teacher itself.
        teacher: whom it is to imitate.
        vocabulary_size: tokens shared by both.
        batch_size: most rows of a pass; rows of like length go together, and not too many tokens.

    Reference:
        Summing over the vocabulary at drawn states: Amini et al. 2025, "Better Estimation of the
        KL Divergence Between Language Models", arXiv 2504.10637.
    """
    read = {}
    for chosen in in_passes(rows, batch_size):
        group = [rows[i] for i in chosen]
        if isinstance(model, ServedTeacher):
            steps = model.evidence(group).action_log_prob[None]
        elif isinstance(teacher, ServedTeacher):
            steps = _beside_lists(group, decoding, model, teacher)
        else:
            own, other = (_scores(group, lm, vocabulary_size) for lm in (model, teacher))
            steps = _by_step(own, other, _actions(group).to(model.device), decoding)
        steps = steps.double().cpu().numpy()
        ends = np.cumsum([len(row.response_ids) for row in group])
        read |= zip(chosen, np.split(steps, ends[:-1], axis=1), strict=True)
    lengths = [len(row.response_ids) for row in rows]
    flat = np.concatenate([read[i] for i in range(len(rows))], axis=1)
    sums = [sums_by_place(values, lengths) for values in flat]
    named = dict(zip(_names(model, teacher), sums, strict=True))
    return OwnStates(named, sums_by_place(np.ones(flat.shape[1]), lengths))


def _names(model: AnyModel, teacher: AnyModel) -> tuple[str, ...]:
    if isinstance(model, ServedTeacher):
        return OF_TEACHER
    return LISTED if isinstance(teacher, ServedTeacher) else WHOLE


def _scores(rows: Sequence[Row], model: LanguageModel, vocabulary_size: int) -> StepScores:
    laid = lay_out(rows, model.pad_id, most_tokens=TOKENS_AT_ONCE)
    return step_scores(model.model, laid.to(model.device), vocabulary_size=vocabulary_size)


def _actions(rows: Sequence[Row]) -> Int[Tensor, " T"]:
    return torch.tensor([a for row in rows for a in row.response_ids])


def _by_step(
    own: StepScores, teacher: StepScores, actions: Int[Tensor, " T"], decoding: Decoding
) -> Float[Tensor, "4 T"]:
    """What is summed, at every step, in the order of `WHOLE`."""
    parts = []
    for start in range(0, len(own), _CHUNK):
        stop = min(start + _CHUNK, len(own))
        logits = own.rows(start, stop).float()
        target = teacher.rows(start, stop).to(logits.device).float().log_softmax(-1)
        policy = log_policy(logits, decoding)
        of_action = target.gather(1, actions[start:stop, None]).squeeze(1)
        entropy = torch.special.entr(policy.exp()).sum(-1)
        reverse = reverse_kl_terms(target, policy).sum(-1)
        forward = forward_kl_terms(target, logits.log_softmax(-1)).sum(-1)
        parts.append(torch.stack([of_action, entropy, reverse, forward]))
    return torch.cat(parts, dim=1)


def _beside_lists(
    rows: Sequence[Row], decoding: Decoding, model: LanguageModel, teacher: ServedTeacher
) -> Float[Tensor, "4 T"]:
    """What is summed beside a served teacher, at every step, in the order of `LISTED`."""
    evidence = teacher.evidence(rows)
    own = _scores(rows, model, teacher.vocabulary_size)
    actions, parts = _actions(rows), []
    for start in range(0, len(own), _CHUNK):
        steps = torch.arange(start, min(start + _CHUNK, len(own)))
        logits = own.rows(start, start + len(steps)).float()
        listed = take_steps(evidence, steps).to(logits.device)
        policy = log_policy(logits, decoding)
        entropy = torch.special.entr(policy.exp()).sum(-1)
        drawn = _drawn(logits, policy, actions[steps].to(logits.device), decoding)
        divergence = kl_with_rest(listed.sets, logits.log_softmax(-1))
        known = listed.action_log_prob
        parts.append(torch.stack([known, entropy, drawn - known, divergence]))
    return torch.cat(parts, dim=1)


def _drawn(
    logits: Float[Tensor, "T V"],
    policy: Float[Tensor, "T V"],
    actions: Int[Tensor, " T"],
    decoding: Decoding,
) -> Float[Tensor, " T"]:
    """Log-probability of the drawn tokens under the policy that drew them, nats.

    A token at the edge of a nucleus may be outside it when it is read again, by rounding; the
    nucleus scales all its members alike, so the likeliest one tells by how much.
    """
    tempered = (logits / (1.0 if decoding.greedy else decoding.temperature)).log_softmax(-1)
    scale = policy.amax(-1) - tempered.amax(-1)
    return tempered.gather(1, actions[:, None]).squeeze(1) + scale


def kl_with_rest(sets: TopPSets, log_probs: Float[Tensor, "T V"]) -> Float[Tensor, " T"]:
    """Forward KL on the members of each set and one outcome for all other tokens, nats.

    At most the forward KL over the vocabulary: lumping outcomes together loses differences.

    Args:
        sets: the teacher's, log-probabilities over the vocabulary.
        log_probs: the student's, over the vocabulary.

    Example:
        >>> sets = TopPSets(torch.tensor([0]), torch.tensor([0.5]).log(), torch.tensor([0, 1]))
        >>> student = torch.tensor([[0.25, 0.25, 0.5]]).log()
        >>> (kl_with_rest(sets, student) / torch.tensor(4 / 3).log()).round(decimals=4).item()
        0.5
    """
    return kl_of_members(sets, log_probs[sets.step, sets.ids])


def kl_of_members(sets: TopPSets, log_probs: Float[Tensor, " M"]) -> Float[Tensor, " T"]:
    """:func:`kl_with_rest`, from the student's log-probabilities of the members alone."""
    (teacher, offsets), (student, _) = (
        with_rest(members, log_rest(log_set_mass(members, sets.offsets)), sets.offsets)
        for members in (sets.log_probs, log_probs)
    )
    return segment_sum(forward_kl_terms(teacher, student), offsets)


def log_policy(logits: Float[Tensor, "T V"], decoding: Decoding) -> Float[Tensor, "T V"]:
    """Log-probabilities that a decoding draws from; greedily those at temperature 1, nats.

    Example:
        >>> logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> log_policy(logits, Decoding(temperature=0.5, sampling_top_p=0.7)).exp()
        tensor([[0.8000, 0.2000, 0.0000]])
    """
    if decoding.greedy:
        return logits.log_softmax(-1)
    log_probs = (logits / decoding.temperature).log_softmax(-1)
    if decoding.sampling_top_p == 1.0:
        return log_probs
    sets = top_p_sets(log_probs, decoding.sampling_top_p)
    nucleus = torch.full_like(log_probs, float("-inf"))
    nucleus[sets.step, sets.ids] = sets.log_probs
    return nucleus.log_softmax(-1)
