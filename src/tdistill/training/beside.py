"""What learns beside the student: its averaged copy, the critic, running means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from tdistill.evidence.batch import Batch, Counts
from tdistill.models.score_forms import StepScores
from tdistill.models.set_scores import SetScores
from tdistill.training.critic import CriticLearner
from tdistill.training.objectives import Objective, StepLoss, Views
from tdistill.training.running import RunningMeans
from tdistill.training.target import TargetNetwork


class Beside(TrainerCallback):
    """Everything that is trained or averaged with a student and is no part of it.

    Args:
        model: the student.
        objective: says what it needs.
        device: where the student trains.
        reduce: ``(tensor, "sum" or "mean")`` over the processes of the run.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        device: torch.device,
        reduce: Callable[[Tensor, str], Tensor],
    ) -> None:
        decay, critic = objective.target_network, objective.critic_config
        self.target = None if decay is None else TargetNetwork(model, decay)
        self.critic = None if critic is None else CriticLearner(model, critic, device)
        self.means = RunningMeans()
        self.device, self.reduce = device, reduce

    def views(
        self,
        student: SetScores,
        batch: Batch,
        *,
        teacher: StepScores | None,
        scores: Callable[[Any, Batch], SetScores],
        counts: Counts,
        update: int,
        updates: int,
    ) -> Views:
        """All that an objective may look at.

        Args:
            student: at the batch.
            batch: rows and evidence.
            teacher: full scores of the live teacher, where it is needed.
            scores: reads a model at a batch.
            counts: of the whole update.
            update: number of the present update.
            updates: of the whole run.
        """
        target = critic = averaged = price = None
        if self.target is not None:
            with torch.no_grad():
                target = scores(self.target.model, batch)
        if self.critic is not None:
            critic, averaged = self.critic.scores(student, batch)
            price = self.critic.critic.price
        means = self.means.means()
        clock = (means, update, updates, counts)
        return Views(student, teacher, target, critic, averaged, price, *clock)

    def observe(self, result: StepLoss) -> None:
        """Take in what an objective summed over a part of the update."""
        self.means.observe(result.sums)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the critic with the student, on the student's schedule, and end the sums."""
        if self.critic is not None:
            factor = kwargs["lr_scheduler"].get_last_lr()[0] / args.learning_rate
            self.critic.update(factor=factor, mean=lambda t: self.reduce(t, "mean"))
        self.means.update(lambda t: self.reduce(t, "sum"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the averaged copy towards the student after every update."""
        if self.target is not None:
            self.target.update(kwargs["model"])

    def save(self, folder: Path) -> None:
        """Write all of it beside a checkpoint."""
        if self.target is not None:
            self.target.save(folder)
        if self.critic is not None:
            self.critic.save(folder)
        self.means.save(folder)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote: training goes on as if never interrupted."""
        if self.target is not None:
            self.target.load(folder)
        if self.critic is not None:
            self.critic.load(folder)
        self.means.load(folder, self.device)
