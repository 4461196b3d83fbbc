"""The implied reward Q(s,a) - discount V(s') of a text under a model, token by token (4.1).

What its sums mean. With ``log proj_p pi_Q(a|s) = Q(s,a) - V_p(s)`` the reward of a step is

    r_t = log proj_p pi_Q(a_t|s_t) + V_p(s_t) - discount_t V_p(s_{t+1}),

so the values telescope over a response of T steps that ended (discount_T-1 = 0):

    sum_t gamma^t r_t = V_p(s_0) + sum_t gamma^t log proj_p pi_Q(a_t|s_t)
    sum_t r_t         = V_p(s_0) + sum_t log proj_p pi_Q(a_t|s_t) + (1 - gamma) sum_{t>=1} V_p(s_t)

Responses to one prompt share V_p(s_0), unless their first token had to be inserted into the set.
Hence ranking the ended responses of a prompt by discounted sum is ranking them by discounted
log-likelihood on the set, under every shift of the logits; at discount 1 ranking by total reward is
ranking by likelihood on the set. The shift c(s) of Q = z - c(s) is potential-based shaping (Ng,
Harada and Russell 1999): beside c(s_0), which is shared, it moves the total by (1 - gamma) c(s_t) a
step, a bonus or a fine for length; the mean it moves by c(s_0) / T, which is not shared. A response
that was cut lacks its last reward: its discounted sum leaves out the last likelihood and keeps
- gamma^(T-1) V_p(s_{T-1}), so it compares with an ended one only where V is small (``normalised``:
V_p is the log of the model's mass on the set).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tdistill.core import implied_reward, soft_value, successor
from tdistill.data.token_texts import token_texts
from tdistill.errors import ModelError
from tdistill.evidence.batch import Batch
from tdistill.evidence.collator import Collator
from tdistill.evidence.evidence import EvidenceSource
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import TOKENS_AT_ONCE, in_passes
from tdistill.models.score_forms import StepScores
from tdistill.models.scores import step_scores
from tdistill.models.set_scores import SetScores
from tdistill.training.critic import Critic
from tdistill.training.objectives import Objective, TemporalDifference


@dataclass(frozen=True)
class Reading:
    """One response read by a model: a number for each of its T tokens, in nats.

    Attributes:
        implied_reward: r (4.1); None where V(s') is unknown, the last step of a cut response.
        value: V_p of the state before the token (3.2).
        log_prob: of the token under the model, over the vocabulary.
        teacher_log_prob: of the token under whoever gave the sets, as kept with them.
        off_set: whether the token was not in the set and was inserted.
        discount: gamma of the sums.
        cost_to_go: g(s,a) of a critic (9.4); empty without one.
    """

    implied_reward: tuple[float | None, ...]
    value: tuple[float, ...]
    log_prob: tuple[float, ...]
    teacher_log_prob: tuple[float, ...]
    off_set: tuple[bool, ...]
    discount: float
    cost_to_go: tuple[float, ...] = ()

    @property
    def total(self) -> float | None:
        """Sum of the known rewards, nats; None where there is none."""
        return self._sum(1.0)

    @property
    def discounted(self) -> float | None:
        """``sum_t gamma^t r_t`` over the known rewards, nats; None where there is none."""
        return self._sum(self.discount)

    @property
    def mean(self) -> float | None:
        """Mean of the known rewards, nats a token; None where there is none.

        Example:
            >>> Reading((3.0, 1.0, None), (0.0,) * 3, (), (), (), 0.5).mean
            2.0
        """
        known = sum(r is not None for r in self.implied_reward)
        return None if self.total is None else self.total / known

    def _sum(self, discount: float) -> float | None:
        known = [discount**t * r for t, r in enumerate(self.implied_reward) if r is not None]
        return sum(known) if known else None


@torch.no_grad()
def read_rewards(
    model: LanguageModel,
    objective: Objective,
    rows: Sequence[Row],
    source: EvidenceSource,
    *,
    vocabulary_size: int,
    critic: Critic | None = None,
    batch_size: int = 8,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Reading]:
    """Implied reward, value and likelihood at every token of some responses.

    Q is the objective's own (its shift and clip) where it has one, else the raw logits; values are
    over the source's top-p sets, with a token outside its set inserted.

    Args:
        model: the model whose reward is read.
        objective: how its logits become Q; its set_top_p and discount.
        rows: the responses.
        source: the sets at their steps.
        vocabulary_size: tokens shared with whoever gave the sets.
        critic: of the model, kept when its training ended; None reads no costs to go.
        batch_size: rows of one forward pass; rows of like length go together.
        on_batch: told the number of rows done by each.

    Returns:
        A reading per row, in the order of the rows.

    Raises:
        ModelError: the model gives a number that is not finite.
    """
    collator = Collator(
        source,
        model.pad_id,
        set_top_p=objective.set_top_p,
        discount=objective.discount,
        share_prefix=True,
        tokens_per_forward=TOKENS_AT_ONCE,
    )
    readings: dict[int, Reading] = {}
    for group in in_passes(rows, batch_size):
        batch = collator([(i, rows[i]) for i in group]).to(model.device)
        found = _read(model, objective, batch, vocabulary_size, critic)
        lengths = [len(rows[i].response_ids) for i in group]
        readings |= zip(group, _by_row(found, lengths, objective.discount), strict=True)
        on_batch(len(group))
    return [readings[i] for i in range(len(rows))]


def reward_traces(
    label: str,
    model: LanguageModel,
    objective: Objective,
    rows: Sequence[Row],
    source: EvidenceSource,
    *,
    vocabulary_size: int,
) -> list[dict[str, Any]]:
    """Implied reward and value at every token of some responses, as plain values.

    Args:
        label: name of the model.
        model: the model whose reward is read.
        objective: what it was trained by.
        rows: responses with evidence.
        source: their evidence.
        vocabulary_size: tokens shared with the teacher.

    Returns:
        A record per row for ``metrics.json``; the reward is None where V(s') is unknown.
    """
    readings = read_rewards(model, objective, rows, source, vocabulary_size=vocabulary_size)
    return [
        {
            **row_texts(label, model, row),
            "implied_reward": list(reading.implied_reward),
            "value": list(reading.value),
        }
        for row, reading in zip(rows, readings, strict=True)
    ]


def row_texts(label: str, model: LanguageModel, row: Row) -> dict[str, Any]:
    """What every trace of a response begins with: its prompt, its model's name, its tokens."""
    prompt = model.tokenizer.decode(list(row.prompt_ids), skip_special_tokens=True)
    return {
        "prompt": prompt,
        "model": label,
        "tokens": token_texts(model.tokenizer, row.response_ids),
    }


def _read(
    model: LanguageModel,
    objective: Objective,
    batch: Batch,
    vocabulary_size: int,
    critic: Critic | None,
) -> dict[str, list[Any]]:
    """The numbers of a batch, flat over its steps."""
    scores = step_scores(model.model, batch.layout, vocabulary_size=vocabulary_size)
    read = SetScores(scores, batch.sets, batch.action)
    if isinstance(objective, TemporalDifference):
        q, q_a = objective.q_values(read)
    else:
        q, q_a = read.on_set, read.action
    value = soft_value(q, batch.sets.offsets)
    links = batch.transitions
    reward = implied_reward(q_a, successor(value, links.has_successor), links.discount)
    log_prob = read.action - read.log_normaliser
    if not (reward.isfinite().all() and log_prob.isfinite().all()):
        raise ModelError(
            f"{model.name}: expected finite scores of every token, found NaN or infinity; the "
            "weights are damaged or training diverged: take an earlier checkpoint"
        )
    known = zip(reward.tolist(), links.can_bootstrap.tolist(), strict=True)
    costs = {} if critic is None else {"cost_to_go": _costs(critic, scores, batch)}
    return costs | {
        "implied_reward": [r if k else None for r, k in known],
        "value": value.tolist(),
        "log_prob": log_prob.tolist(),
        "teacher_log_prob": batch.teacher_action_log_prob.tolist(),
        "off_set": batch.out_of_set.tolist(),
    }


def _costs(critic: Critic, scores: StepScores, batch: Batch) -> list[float]:
    assert scores.hidden is not None, "the critic was trained on hidden states of this model"
    return SetScores(critic.scores(scores.hidden), batch.sets, batch.action).action.tolist()


def _by_row(found: dict[str, list[Any]], lengths: Sequence[int], discount: float) -> list[Reading]:
    readings, start = [], 0
    for length in lengths:
        part = {name: tuple(steps[start : start + length]) for name, steps in found.items()}
        readings.append(Reading(**part, discount=discount))
        start += length
    return readings
