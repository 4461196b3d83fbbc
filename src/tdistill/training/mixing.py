"""Whose responses a batch holds: the teacher's, the ground truth's, and the student's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tdistill.evidence.collator import Item
from tdistill.evidence.evidence import take_responses
from tdistill.evidence.rows import Row, RowSource
from tdistill.models.generation import Companion, draw, generate, row_uniforms, seed_of
from tdistill.models.language_model import LanguageModel
from tdistill.teacher.source import LiveTeacher
from tdistill.training.config import ReplayConfig
from tdistill.training.objectives import Objective
from tdistill.training.replay import Entry, ReplayBuffer


@dataclass(frozen=True, eq=False)
class StudentSampler:
    """Samples the student (mixed with the teacher, if wanted) and has the teacher score it.

    Attributes:
        student: the model being trained.
        teacher: scores the responses, and takes part in choosing tokens by ``teacher_mix``.
        config: length and temperature.
        teacher_mix: weight of the teacher in the mixture that tokens are drawn from.
    """

    student: LanguageModel
    teacher: LiveTeacher
    config: ReplayConfig
    teacher_mix: float

    def sample(self, prompts: Sequence[tuple[int, ...]], *, seed: int, update: int) -> list[Entry]:
        """One response to each prompt, with the teacher's evidence and the sampler's log-probs."""
        network = self.student.model
        was_training = network.training
        network.eval()
        entries, made = [], self._responses(prompts, seed)
        for first in range(0, len(made), self.config.batch_size):
            rows = made[first : first + self.config.batch_size]
            evidence = self.teacher.evidence(rows)
            parts = take_responses(evidence, [len(row.response_ids) for row in rows])
            entries += [Entry(row, part, update) for row, part in zip(rows, parts, strict=True)]
        network.train(was_training)
        return entries

    def _responses(self, prompts: Sequence[tuple[int, ...]], seed: int) -> list[Row]:
        seeds = [seed_of(seed, place) for place in range(len(prompts))]
        uniform = row_uniforms(seeds, device=self.student.device)
        steps: list[tuple[Tensor, Tensor]] = []

        def choose(logits: Tensor, active: Tensor) -> Tensor:
            log_probs = (logits / self.config.temperature).log_softmax(-1)
            chosen = draw(log_probs, uniform(active))
            steps.append((active, log_probs.gather(1, chosen[:, None]).squeeze(1)))
            return chosen

        mixed = Companion(self.teacher.teacher, self.teacher_mix) if self.teacher_mix else None
        made = generate(
            self.student,
            prompts,
            choose,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            companion=mixed,
        )
        order = torch.cat([rows for rows, _ in steps]).argsort(stable=True)
        taken = torch.cat([values for _, values in steps])[order]
        behaviour = taken.split([len(response.ids) for response in made])
        source: RowSource = "mixed" if mixed else "student"
        return [
            Row(prompt, response.ids, response.ended, source, tuple(values.tolist()))
            for prompt, response, values in zip(prompts, made, behaviour, strict=True)
        ]


class EvidenceMix:
    """Gives a share of every batch to other rows than the teacher's responses.

    What it does depends on the seed and the number of the update alone, so that a resumed run, its
    buffer restored, goes on as the straight one.

    Args:
        objective: says the shares.
        steps: updates of the whole run, for shares that change.
        prompts: what the student responds to.
        sampler: makes the student's responses; None where the objective uses none.
        references: ground-truth responses with evidence.
        config: how often responses are made, and how long they are kept.
        seed: of prompts, draws and tokens.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        steps: int,
        prompts: Sequence[tuple[int, ...]],
        sampler: StudentSampler | None,
        references: Sequence[Row],
        config: ReplayConfig,
        seed: int,
    ) -> None:
        self.objective, self.steps, self.sampler = objective, steps, sampler
        self.prompts, self.references = list(dict.fromkeys(prompts)), list(references)
        self.config, self.seed = config, seed
        self.buffer = ReplayBuffer(config)

    def student_share(self, update: int) -> float:
        """Share of student rows at an update: constant, or linear to the last one."""
        first, last = self.objective.student_share, self.objective.student_share_end
        if last is None:
            return first
        return first + (last - first) * min(1.0, update / max(self.steps - 1, 1))

    def refresh(self, update: int) -> None:
        """Let the student respond to some prompts, where it is time to."""
        due = update % self.config.refresh_every == 0 and self.student_share(update) > 0
        if self.sampler is None or not due:
            return
        seed = seed_of("refresh", self.seed, update)
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = []
        while len(order) < self.config.rows_per_refresh:
            order += torch.randperm(len(self.prompts), generator=generator).tolist()
        chosen = [self.prompts[i] for i in order[: self.config.rows_per_refresh]]
        chosen.sort(key=len)  # less padding
        self.buffer.add(self.sampler.sample(chosen, seed=seed, update=update), update=update)

    def mix(self, items: Sequence[Item], *, update: int, part: int, parts: int) -> list[Item]:
        """A micro-batch with its share of other rows in it.

        Args:
            items: rows with their indices, as drawn from the data.
            update: number of the present update, from 0.
            part: number of the micro-batch in the update, from 0.
            parts: micro-batches of an update; shares are met over all of them, and over updates.
        """
        count, place = len(items), update * parts + part
        share, fixed = self.student_share(update), self.objective.reference_share
        references = self._references(_due(fixed, count, place), place)
        students = _due(share, count, place)
        drawn = self.buffer.draw(students, update=update, seed=f"draw:{self.seed}:{place}")
        others = [*references, *drawn][:count]
        kept = list(items[: count - len(others)])
        tail = items[count - len(others) :]
        return kept + [(index, row) for (index, _), row in zip(tail, others, strict=True)]

    def _references(self, count: int, place: int) -> list[Row]:
        if count == 0:
            return []
        generator = torch.Generator().manual_seed(seed_of("references", self.seed, place))
        chosen = torch.randint(len(self.references), (count,), generator=generator)
        return [self.references[i] for i in chosen.tolist()]

    def save(self, folder: Path, rank: int) -> None:
        """Write the buffer next to a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        self.buffer.save(folder / f"replay-{rank}.safetensors")

    def load(self, folder: Path, rank: int) -> None:
        """Read the buffer of a checkpoint."""
        self.buffer.load(folder / f"replay-{rank}.safetensors")


def _due(share: float, count: int, place: int) -> int:
    """How many of ``count`` rows are due, so that the share is met over all micro-batches."""
    return int((place + 1) * share * count + 1e-9) - int(place * share * count + 1e-9)
