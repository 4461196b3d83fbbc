"""A made-up critic of costs to go, and what the tests of objectives with one share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tdistill.evidence.batch import Batch
from tdistill.evidence.rows import Row
from tdistill.models.score_forms import DenseStepScores
from tdistill.models.set_scores import SetScores
from tdistill.training.objectives import Views
from tiny import VOCABULARY
from world import random_view


def as_student(rows: Any, behaviour: float = -1.0) -> list[Row]:
    return [
        replace(row, source="student", behaviour=(behaviour,) * len(row.response_ids))
        for row in rows
    ]


def values(batch: Batch, *, seed: int = 5) -> SetScores:
    """A critic that wants a gradient: random costs to go, none negative."""
    generator = torch.Generator().manual_seed(seed)
    table = 2 * torch.rand(len(batch.action), VOCABULARY, generator=generator, dtype=torch.float64)
    return SetScores(DenseStepScores(table.requires_grad_()), batch.sets, batch.action)


def views_of(batch: Batch, **more: Any) -> tuple[Tensor, Views]:
    logits, student = random_view(batch)
    critic = more.pop("critic", None) or values(batch)
    frozen = SetScores(DenseStepScores(critic.scores.logits.detach()), batch.sets, batch.action)
    more.setdefault("price", torch.zeros(VOCABULARY, dtype=torch.float64).requires_grad_())
    return logits, Views(student, critic=critic, averaged_critic=frozen, **more)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    return found


def per_row(batch: Batch) -> list[slice]:
    lengths = batch.row.bincount().tolist()
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
