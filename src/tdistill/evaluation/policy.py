"""The policy that made responses and the teacher, read at the states of those responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tdistill.core import forward_kl_terms, reverse_kl_terms, top_p_sets
from tdistill.evaluation.places import sums_by_place
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import TOKENS_AT_ONCE, in_passes, lay_out
from tdistill.models.score_forms import StepScores
from tdistill.models.scores import step_scores

_CHUNK = 128  # steps whose full logits exist at once


@dataclass(frozen=True, eq=False)
class OwnStates:
    """What a model and its teacher say at every state of the model's own responses.

    Sums over the steps of each response, ``[rows]``, nats. What is summed is itself a sum over the
    vocabulary, so it has no noise of the token that was drawn.

    Attributes:
        tokens: steps of the response.
        teacher_log_prob: of the response under the teacher.
        entropy: of the policy that chose the tokens; greedily, of the model at temperature 1.
        reverse_kl: of that policy from the teacher.
        forward_kl: of the teacher from the model, both at temperature 1.
        forward_kl_by_place: the same, place by place (`sums_by_place`) [rows, places].
        tokens_by_place: steps of each place.
    """

    tokens: NDArray[np.float64]
    teacher_log_prob: NDArray[np.float64]
    entropy: NDArray[np.float64]
    reverse_kl: NDArray[np.float64]
    forward_kl: NDArray[np.float64]
    forward_kl_by_place: NDArray[np.float64]
    tokens_by_place: NDArray[np.float64]


@torch.no_grad()
def read_own_states(
    rows: Sequence[Row],
    decoding: Decoding,
    model: LanguageModel,
    teacher: LanguageModel,
    *,
    vocabulary_size: int,
    batch_size: int,
) -> OwnStates:
    """One pass of model and teacher over responses of the model.

    Args:
        rows: the responses.
        decoding: how they were made.
        model: who made them.
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
        laid = lay_out(group, model.pad_id, most_tokens=TOKENS_AT_ONCE)
        own, other = (
            step_scores(lm.model, laid.to(lm.device), vocabulary_size=vocabulary_size)
            for lm in (model, teacher)
        )
        actions = torch.tensor([a for row in group for a in row.response_ids])
        steps = _by_step(own, other, actions.to(model.device), decoding).double().cpu().numpy()
        ends = np.cumsum([len(row.response_ids) for row in group])
        read |= zip(chosen, np.split(steps, ends[:-1], axis=1), strict=True)
    lengths = [len(row.response_ids) for row in rows]
    flat = np.concatenate([read[i] for i in range(len(rows))], axis=1)
    ones = np.ones((1, flat.shape[1]))
    sums = [sums_by_place(values, lengths) for values in (*flat, *ones)]
    log_prob, entropy, reverse_kl, forward_kl, tokens = (part.sum(axis=1) for part in sums)
    return OwnStates(tokens, log_prob, entropy, reverse_kl, forward_kl, sums[-2], sums[-1])


def _by_step(
    own: StepScores, teacher: StepScores, actions: Int[Tensor, " T"], decoding: Decoding
) -> Float[Tensor, "4 T"]:
    """What is summed, at every step, in the order of `OwnStates`."""
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
