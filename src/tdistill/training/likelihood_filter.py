"""The likelihood filter: of the responses to train on, those that the student finds likeliest."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from tdistill.checks import check
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.models.likelihood import response_log_probs
from tdistill.processes import gathered, process_count, process_rank
from tdistill.teacher.cache.cached_rows import select_rows
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import Objective
from tdistill.training.sampling import PromptGroups

_PART = 4096  # rows that are in memory together


@dataclass(frozen=True, eq=False)
class LikelihoodFilter:
    """Keeps a share of each group of rows, which the processes of a run share out among them.

    Attributes:
        student: scores the rows, as it is when it is asked.
        share: of each group, rounded up.
        vocabulary_size: tokens shared by teacher and student.
        batch_size: rows of one forward pass.
    """

    student: LanguageModel
    share: float
    vocabulary_size: int
    batch_size: int

    def best(self, rows: Sequence[Row], *, groups: Sequence[Hashable]) -> list[int]:
        """Indices of the rows of each group with the largest mean log-probability a token.

        Args:
            rows: prompts with responses.
            groups: what each row belongs to.

        Returns:
            Indices in ascending order.
        """
        rank, count = process_rank(), process_count()
        own = rows[rank::count]
        parts = (list(own[first : first + _PART]) for first in range(0, len(own), _PART))
        shares = gathered([mean for part in parts for mean in self._mean_log_probs(part)])
        means = [shares[i % count][i // count] for i in range(len(rows))]
        return largest_share(means, groups, self.share)

    def _mean_log_probs(self, rows: Sequence[Row]) -> list[float]:
        """Of each row, nats a token."""
        network = self.student.model
        was_training = network.training
        network.eval()
        size, batch_size = self.vocabulary_size, self.batch_size
        totals = response_log_probs(self.student, rows, vocabulary_size=size, batch_size=batch_size)
        network.train(was_training)
        lengths = torch.tensor([len(row.response_ids) for row in rows])
        return (totals / lengths).tolist()

    def best_of_prompts(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The best rows of each prompt.

        Raises:
            InvalidValueError: if that is all of them.
        """
        kept = select_rows(rows, self.best(rows, groups=PromptGroups.of(rows).numbers()))
        wanted = "a share that leaves out some response of some prompt (or keep_when: update)"
        found = f"{self.share}, which keeps all {len(rows)}"
        check("keep_share", len(kept) < len(rows), wanted, found)
        return kept


def likelihood_filter(
    student: LanguageModel, objective: Objective, config: TrainConfig, vocabulary_size: int
) -> LikelihoodFilter | None:
    """The filter that an objective asks for; None where it keeps all rows.

    Args:
        student: the model that is trained.
        objective: says the share.
        config: says how many rows fit a forward pass.
        vocabulary_size: tokens shared by teacher and student.

    Raises:
        InvalidValueError: if filtered updates could be too small to be cut into micro-batches.
    """
    share, size = objective.keep_share, config.rows_of_process(process_count())
    if share == 1.0:
        return None
    wanted = f"at least one row of the {size} of each micro-batch and process"
    filled = objective.keep_when == "start" or share * size >= 1.0
    check("keep_share", filled, wanted, share)
    return LikelihoodFilter(student, share, vocabulary_size, size)


def largest_share(scores: Sequence[float], groups: Sequence[Hashable], share: float) -> list[int]:
    """Indices of the largest scores of each group, a share of it rounded up; the first of equals.

    Example:
        >>> largest_share([3.0, 1.0, 2.0, 9.0], ["a", "a", "a", "b"], 0.5)
        [0, 2, 3]
    """
    members: dict[Hashable, list[int]] = {}
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        members.setdefault(groups[i], []).append(i)
    counts = {group: math.ceil(share * len(own) - 1e-9) for group, own in members.items()}
    return sorted(i for group, own in members.items() for i in own[: counts[group]])
