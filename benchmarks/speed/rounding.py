"""What the rounding of the cache changes: V of a step, and the gradient of a real student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tdistill.core import TopPSets, log_set_mass, top_p_sets
from tdistill.evidence.collator import Collator
from tdistill.evidence.evidence import Evidence
from tdistill.models.language_model import LanguageModel
from tdistill.models.scores import step_scores
from tdistill.models.set_scores import SetScores
from tdistill.teacher.cache.rounding import round_log_probs, round_normaliser
from tdistill.training.objectives import KD, BellmanDistill, Objective, Views

OBJECTIVES: tuple[Objective, ...] = (BellmanDistill(), KD())
Rounding = Callable[[Evidence], Evidence]


@dataclass(frozen=True)
class Held:
    """Evidence of rows that are asked for as a whole."""

    held: Evidence

    def evidence(self, rows: Any, *, set_top_p: float | None = None) -> Evidence:
        """All of it; the sets are those that were captured."""
        return self.held


def exact_evidence(
    rows: Sequence[Any], log_probs: Tensor, normaliser: Tensor, mass: float, cap: int
) -> Evidence:
    """What the teacher says of the rows' steps, in float32."""
    actions = torch.tensor([token for row in rows for token in row.response_ids])
    sets = top_p_sets(log_probs, mass, max_size=cap)
    return Evidence(sets, normaliser, log_probs.gather(1, actions[:, None]).squeeze(1))


def as_cached(exact: Evidence) -> Evidence:
    """As the cache keeps it."""
    sets = TopPSets(exact.sets.ids, round_log_probs(exact.sets.log_probs), exact.sets.offsets)
    action = round_log_probs(exact.action_log_prob)
    return Evidence(sets, round_normaliser(exact.log_normaliser), action)


def as_float16(exact: Evidence) -> Evidence:
    """Log-probabilities in float16 and a float32 normaliser, as other caches have them."""
    sets = TopPSets(exact.sets.ids, exact.sets.log_probs.half().float(), exact.sets.offsets)
    return Evidence(sets, exact.log_normaliser, exact.action_log_prob.half().float())


ROUNDINGS: dict[str, Rounding] = {"cache": as_cached, "float16": as_float16}


def effects(student: LanguageModel, rows: Sequence[Any], exact: Evidence) -> list[dict[str, Any]]:
    """Errors of V, nats, and of gradients, as a share of their length."""
    gradients = {o.name: gradient_of(student, rows, exact, o) for o in OBJECTIVES}
    lines = []
    for name, rounded in ROUNDINGS.items():
        kept = rounded(exact)
        error = (value_of(kept) - value_of(exact)).abs()
        line = {"rounding": name, "v_rms": float(error.square().mean().sqrt())}
        line |= {"v_max": float(error.max())}
        for objective in OBJECTIVES:
            true = gradients[objective.name]
            found = gradient_of(student, rows, kept, objective)
            line[f"gradient of {objective.name}"] = float((found - true).norm() / true.norm())
        lines.append(line)
    return lines


def value_of(evidence: Evidence) -> Tensor:
    """V of the teacher on its sets: ``log sum_A exp Q``, Q its logits."""
    sets = evidence.sets
    return log_set_mass(sets.log_probs.double(), sets.offsets) + evidence.log_normaliser


def gradient_of(
    student: LanguageModel, rows: Sequence[Any], evidence: Evidence, objective: Objective
) -> Tensor:
    """The gradient of the mean loss with respect to all weights, flat."""
    collate = Collator(Held(evidence), student.pad_id, set_top_p=None)
    batch = collate(list(enumerate(rows)))
    size = student.vocabulary_size
    student.model.zero_grad()
    scores = step_scores(student.model, batch.layout, vocabulary_size=size)
    view = SetScores(scores, batch.sets, batch.action)
    objective.loss(Views(view), batch).loss.mean().backward()
    weights = (w.grad for w in student.model.parameters() if w.grad is not None)
    return torch.cat([gradient.flatten() for gradient in weights])
