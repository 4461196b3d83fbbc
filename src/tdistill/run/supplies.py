"""Where the teacher's responses come from: sampled, shared out, or scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.progress import Progress
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.teacher.listing.teacher import ListingTeacher
from tdistill.teacher.rollouts import (
    PromptIds,
    UnitSampler,
    collect_rollouts,
    count_sampled,
    plan_key,
    planned_shards,
)
from tdistill.teacher.scoring import collect_scores, planned_score_shards
from tdistill.teacher.shares import WHOLE, Share, note_of
from tdistill.teacher.source import LiveTeacher


class Supply(Protocol):
    """Responses with evidence, and how they get into a cache."""

    @property
    def shards(self) -> list[str]:
        """Names of the files that it leaves in the cache."""
        ...

    def fill(self, folder: Path) -> int:
        """Bring into a cache what it does not hold yet; returns the number of responses."""
        ...

    def rows(self, cache: Cache) -> Sequence[Row]:
        """The responses, from the filled cache."""
        ...


@dataclass(frozen=True)
class Sampled:
    """Responses that the teacher is asked for.

    Attributes:
        stage: its name, for the progress.
        prompts: token ids of the prompts.
        config: how they are sampled and captured.
        teacher: loads the teacher, or finds the one that is served.
    """

    stage: str
    prompts: Sequence[PromptIds]
    config: RolloutConfig
    teacher: Callable[[], LanguageModel | UnitSampler]

    @property
    def shards(self) -> list[str]:
        """See :class:`Supply`."""
        return planned_shards(self.prompts, self.config)

    def fill(self, folder: Path) -> int:
        """See :class:`Supply`."""
        teacher = self.teacher()
        with CacheWriter(folder, sampled_identity(teacher, self.config.capture)) as writer:
            return self._collect(teacher, writer, WHOLE)

    def fill_share(self, folder: Path, share: Share) -> int:
        """Sample one share of the plan into a cache of its own; returns the number of responses.

        Args:
            folder: the cache that is wanted in the end; what it holds is not sampled again.
            share: which part.
        """
        teacher, own = self.teacher(), share.folder(folder)
        identity = sampled_identity(teacher, self.config.capture)
        with CacheWriter(own, identity, beside=folder) as writer:
            if self.shards:
                note_of(self.shards, share).write(own)
            return self._collect(teacher, writer, share)

    def _collect(
        self, teacher: LanguageModel | UnitSampler, writer: CacheWriter, share: Share
    ) -> int:
        name = self.stage if share == WHOLE else f"{self.stage} {share}"
        done, total = count_sampled(self.prompts, self.config, writer, share)
        bar = Progress(name, total, "responses", done=done)
        plan = (self.prompts, self.config, writer, bar.advance)
        rows = sum(collect_rollouts(teacher, *plan, share=share))
        bar.close()
        return rows

    def rows(self, cache: Cache) -> Sequence[Row]:
        """See :class:`Supply`."""
        return cache.rows(shard=f"rollouts-{plan_key(self.prompts, self.config)}")


@dataclass(frozen=True)
class Scored:
    """Responses of others, which the teacher reads once.

    Attributes:
        stage: its name, for the progress.
        responses: prompts with responses.
        teacher: loads the teacher.
    """

    stage: str
    responses: Sequence[Row]
    teacher: Callable[[], LiveTeacher | ListingTeacher]

    @property
    def shards(self) -> list[str]:
        """See :class:`Supply`."""
        return planned_score_shards(self.responses)

    def fill(self, folder: Path) -> int:
        """See :class:`Supply`."""
        teacher = self.teacher()
        with CacheWriter(folder, scored_identity(teacher)) as writer:
            bar = Progress(self.stage, len(self.responses), "responses")
            rows = sum(collect_scores(teacher, self.responses, writer, on_finished=bar.advance))
            bar.close()
            return rows

    def rows(self, cache: Cache) -> Sequence[Row]:
        """See :class:`Supply`."""
        return self.responses


def sampled_identity(teacher: LanguageModel | UnitSampler, config: CaptureConfig) -> CacheIdentity:
    """The identity of the cache that a teacher of either kind would write."""
    if isinstance(teacher, LanguageModel):
        return identity_of(teacher, config)
    return teacher.identity(config)


def scored_identity(teacher: LiveTeacher | ListingTeacher) -> CacheIdentity:
    """The identity of the cache that a teacher of either kind would write what it reads to."""
    if isinstance(teacher, LiveTeacher):
        return identity_of(teacher.teacher, teacher.config)
    return teacher.identity(teacher.capture)
