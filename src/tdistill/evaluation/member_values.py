"""What a critic expects behind each member of the teacher's sets, beside both policies (9.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tdistill import core
from tdistill.data.token_texts import token_texts
from tdistill.errors import ModelError
from tdistill.evaluation.reward import row_texts
from tdistill.evidence.batch import Batch
from tdistill.evidence.collator import Collator
from tdistill.evidence.evidence import EvidenceSource
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.models.scores import step_scores
from tdistill.models.set_scores import SetScores
from tdistill.training.critic import Critic
from tdistill.training.objectives import Objective

_STEPS, _MEMBERS = 5, 6
_LEAST = 1e-3  # nats spared; less is rounding, or a set of one member


def member_values(
    label: str,
    model: LanguageModel,
    critic: Critic,
    objective: Objective,
    *,
    rows: Sequence[Row],
    source: EvidenceSource,
    vocabulary_size: int,
) -> list[dict[str, Any]]:
    """Where a student departs from its teacher most to spare itself what follows.

    Args:
        label: name of the student.
        model: the student.
        critic: of its cost to go, as it was when training ended.
        objective: what it was trained by; its sets.
        rows: responses with evidence.
        source: their evidence.
        vocabulary_size: tokens shared with the teacher.

    Returns:
        A record per row for ``metrics.json``: its tokens, and the few steps that spare most (nats),
        if any spares at all, with the likeliest members of the set: both probabilities on the set,
        and the cost to go less the teacher's mean (nats).

    Raises:
        ModelError: the model does not show the hidden states that a critic reads.
    """
    collate = Collator(
        source, model.pad_id, set_top_p=objective.set_top_p, discount=0.0, share_prefix=False
    )
    return [
        {
            **row_texts(label, model, row),
            "steps": _steps(model, critic, collate([(0, row)]).to(model.device), vocabulary_size),
        }
        for row in rows
    ]


@torch.no_grad()
def _steps(
    model: LanguageModel, critic: Critic, batch: Batch, vocabulary_size: int
) -> list[dict[str, Any]]:
    """The steps of one response that spare most, in their order.

    What a step spares is ``E_T[g] - E_pi[g]``, both policies on the set.
    """
    scores = step_scores(model.model, batch.layout, vocabulary_size=vocabulary_size)
    if scores.hidden is None:
        raise ModelError(f"{model.name}: expected a model that shows its hidden states, found none")
    sets, offsets = batch.sets, batch.sets.offsets
    to_go = SetScores(critic.scores(scores.hidden), sets, batch.action).on_set
    teacher = core.project(sets.log_probs, offsets)
    student = core.project(scores.at(sets.ids, sets.step), offsets)
    cost = core.advantage(to_go, teacher, offsets)
    spared = -core.expectation(cost, student, offsets)
    best = spared.argsort(descending=True, stable=True)[:_STEPS]
    steps = best[spared[best] > _LEAST].sort().values
    numbers = (teacher.exp().tolist(), student.exp().tolist(), cost.tolist())

    def members(step: int) -> list[dict[str, Any]]:
        first, end = offsets[step : step + 2].tolist()
        chosen = slice(first, min(end, first + _MEMBERS))
        texts = token_texts(model.tokenizer, sets.ids[chosen].tolist())
        parts = zip(texts, *(of_members[chosen] for of_members in numbers), strict=True)
        return [{"token": text, "teacher": t, "student": s, "cost": c} for text, t, s, c in parts]

    return [
        {"step": step, "spared": float(spared[step]), "members": members(step)}
        for step in steps.tolist()
    ]
