"""Whose responses a batch holds: the teacher's, the ground truth's, and the student's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tdistill.evidence.collator import Item
from tdistill.evidence.evidence import take_responses
from tdistill.evidence.rows import Row, RowSource
from tdistill.models.generation import Companion, draw, generate, row_uniforms, seed_of
from tdistill.models.language_model import LanguageModel
from tdistill.processes import gathered, process_count, process_rank
from tdistill.teacher.cache.cached_rows import take_rows
from tdistill.teacher.source import LiveTeacher
from tdistill.training.config import ReplayConfig
from tdistill.training.likelihood_filter import LikelihoodFilter
from tdistill.training.objectives import Objective
from tdistill.training.replay import Entry, ReplayBuffer, entries_from_bytes, entries_to_bytes
from tdistill.training.sampling import PromptGroups

REPLAY_FILE = "replay.safetensors"

_Any = TypeVar("_Any")


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

    def sample(
        self,
        prompts: Sequence[tuple[int, ...]],
        *,
        seed: int,
        update: int,
        limits: Sequence[int] | None = None,
        places: Sequence[int] | None = None,
    ) -> list[Entry]:
        """One response to each prompt, with the teacher's evidence and the sampler's log-probs.

        Args:
            prompts: what to respond to.
            seed: decides the tokens, with a response's place.
            update: the present one.
            limits: most tokens of each response; the configuration's ``max_new_tokens`` where None.
            places: of the responses among all of their round; 0, 1, 2, ... where None.
        """
        network = self.student.model
        was_training = network.training
        network.eval()
        seeds = [seed_of(seed, place) for place in places or range(len(prompts))]
        entries, made = [], self._responses(prompts, seeds, limits)
        for first in range(0, len(made), self.config.batch_size):
            rows = made[first : first + self.config.batch_size]
            evidence = self.teacher.evidence(rows)
            parts = take_responses(evidence, [len(row.response_ids) for row in rows])
            entries += [Entry(row, part, update) for row, part in zip(rows, parts, strict=True)]
        network.train(was_training)
        return entries

    def _responses(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], limits: Sequence[int] | None
    ) -> list[Row]:
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
            max_new_tokens=limits or self.config.max_new_tokens,
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
    buffer restored, goes on as the straight one, on however many processes: they share out the
    sampling of the student, and each holds all that is sampled.

    Args:
        objective: says the shares.
        steps: updates of the whole run, for shares that change.
        rows: the training responses, whose prompts the student responds to, or which it continues.
        sampler: makes the student's responses; None where the objective uses none.
        references: ground-truth responses with evidence.
        config: how often responses are made, and how long they are kept.
        seed: of prompts, draws and tokens.
        likelier: leaves the likelier of the rows of an update; None leaves all.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        steps: int,
        rows: Sequence[Row],
        sampler: StudentSampler | None,
        references: Sequence[Row],
        config: ReplayConfig,
        seed: int,
        likelier: LikelihoodFilter | None = None,
    ) -> None:
        self.objective, self.steps, self.sampler = objective, steps, sampler
        self.rows, self.references = rows, list(references)
        self.prompts = PromptGroups.of(rows)
        self.config, self.seed, self.likelier = config, seed, likelier
        self.buffer = ReplayBuffer(config)

    def student_share(self, update: int) -> float:
        """Share of student rows at an update: constant, or linear to the last one."""
        first, last = self.objective.student_share, self.objective.student_share_end
        if last is None:
            return first
        return first + (last - first) * min(1.0, update / max(self.steps - 1, 1))

    def refresh(self, update: int) -> None:
        """Let the student respond to some prompts, or go on from within rows, where it is time."""
        due = update % self.config.refresh_every == 0 and self.student_share(update) > 0
        if self.sampler is None or not due:
            return
        seed = seed_of("refresh", self.seed, update)
        generator = torch.Generator().manual_seed(seed)
        count, most = self.config.rows_per_refresh, self.config.branch_tokens
        if most is None:
            drawn = [int(self.prompts[i][0]) for i in _drawn(len(self.prompts), count, generator)]
            whole = [row.prompt_ids for row in take_rows(self.rows, drawn)]
            chosen = [(prompt, self.config.max_new_tokens) for prompt in whole]
        else:
            rows = take_rows(self.rows, _drawn(len(self.rows), count, generator))
            chosen = [self._branch(row, most, generator) for row in rows]
        chosen.sort(key=lambda one: len(one[0]))  # less padding
        made = self._sampled(self.sampler, chosen, seed=seed, update=update)
        self.buffer.add(made, update=update)

    @staticmethod
    def _sampled(
        sampler: StudentSampler,
        chosen: Sequence[tuple[tuple[int, ...], int]],
        *,
        seed: int,
        update: int,
    ) -> list[Entry]:
        """Responses to prompts of some lengths at most: every process makes its share."""
        rank, count = process_rank(), process_count()
        places = range(rank, len(chosen), count)
        made: list[Entry] = []
        if places:
            prompts, limits = zip(*(chosen[place] for place in places), strict=True)
            clock = {"seed": seed, "update": update}
            made = sampler.sample(prompts, limits=limits, places=places, **clock)
        if count == 1:
            return made
        shares = [entries_from_bytes(share) for share in gathered(entries_to_bytes(made))]
        return [shares[place % count][place // count] for place in range(len(chosen))]

    def _branch(
        self, row: Row, most: int, generator: torch.Generator
    ) -> tuple[tuple[int, ...], int]:
        """A state of a row to go on from, and for how many tokens at most."""
        length = len(row.response_ids)
        position = int(torch.randint(length, (), generator=generator))
        # No longer than the row or a whole response, which the models are known to have room for.
        room = max(length, self.config.max_new_tokens) - position
        return row.prompt_ids + row.response_ids[:position], min(most, room)

    def keep(self, items: Sequence[Item]) -> Sequence[Item]:
        """The likelier rows of an update only, where they are wanted."""
        if self.likelier is None or not items:
            return items
        best = self.likelier.best([row for _, row in items], groups=[0] * len(items))
        return [items[i] for i in best]

    def mix(self, items: Sequence[Item], *, update: int) -> list[Item]:
        """The rows of an update with their share of other rows among them.

        Args:
            items: rows with their indices, as drawn from the data.
            update: number of the present update, from 0; shares are met over updates.
        """
        count = len(items)
        share, fixed = self.student_share(update), self.objective.reference_share
        references = self._references(_due(fixed, count, update), update)
        students = _due(share, count, update)
        drawn = self.buffer.draw(students, update=update, seed=f"draw:{self.seed}:{update}")
        others = [*references, *drawn][:count]
        kept = list(items[: count - len(others)])
        tail = items[count - len(others) :]
        return kept + [(index, row) for (index, _), row in zip(tail, others, strict=True)]

    def _references(self, count: int, update: int) -> list[Row]:
        if count == 0:
            return []
        generator = torch.Generator().manual_seed(seed_of("references", self.seed, update))
        chosen = torch.randint(len(self.references), (count,), generator=generator)
        return [self.references[i] for i in chosen.tolist()]

    def save(self, folder: Path) -> None:
        """Write the buffer next to a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        self.buffer.save(folder / REPLAY_FILE)

    def load(self, folder: Path) -> None:
        """Read the buffer of a checkpoint."""
        self.buffer.load(folder / REPLAY_FILE)


def own_parts(
    items: Sequence[_Any], *, accumulation: int, process: int, processes: int
) -> list[list[_Any]]:
    """What one process has of each micro-batch of an update, cut as evenly as can be.

    Example:
        >>> own_parts("abcdefgh", accumulation=2, process=1, processes=2)
        [['c', 'd'], ['g', 'h']]
    """
    pieces = accumulation * processes
    ends = [len(items) * i // pieces for i in range(pieces + 1)]
    return [list(items[a:b]) for a, b in list(pairwise(ends))[process::processes]]


def _drawn(pool: int, count: int, generator: torch.Generator) -> list[int]:
    """So many numbers below ``pool``, each once as long as there are enough."""
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(pool, generator=generator)[: count - len(order)].tolist()
    return order


def _due(share: float, count: int, update: int) -> int:
    """How many of ``count`` rows are due, so that the share is met over all updates."""
    return int((update + 1) * share * count + 1e-9) - int(update * share * count + 1e-9)
