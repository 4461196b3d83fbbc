"""A teacher that lists its likeliest tokens: samples units of work, and reads given responses."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tdistill.core import truncate
from tdistill.errors import ModelError
from tdistill.evidence.evidence import Evidence, concatenate
from tdistill.evidence.rows import Row
from tdistill.hashing import key_of
from tdistill.models.decoding import Decoding
from tdistill.models.generation import seed_of
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.row_encoder import CachedResponse
from tdistill.teacher.config import CaptureConfig, Incomplete, RolloutConfig
from tdistill.teacher.listing.journal import Journal
from tdistill.teacher.listing.steps import Answer, Asked, Asking, Step, listed_evidence
from tdistill.teacher.rollouts import Unit

_SEEDS = 1 << 31  # engines take 32 bits with a sign
_JUDGED = "evaluation"  # where answers without evidence wait


def asked_for(prompt: tuple[int, ...], *of: object) -> Asked:
    """A wanted response whose random numbers follow from what it is an answer ``of``."""
    return Asked(prompt, seed_of(*of) % _SEEDS)


class Engine(Protocol):
    """Whoever samples and lists: it is asked by token ids and answers with token ids."""

    @property
    def model(self) -> str:
        """The name of the model that it has."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the model, as far as it is known here."""
        ...

    @property
    def most_tokens(self) -> int | None:
        """The longest row that it takes, in tokens, if it says so."""
        ...

    def check(self, tokenizer: Any, how: Asking) -> str:
        """Try it before work is spent; returns what was found, for people."""
        ...

    def respond(
        self,
        asked: Sequence[Asked],
        how: Asking,
        keep: Callable[[int, Answer], None],
    ) -> list[Answer]:
        """Sample responses; ``keep`` is told each with its place as soon as it is there."""
        ...

    def read(self, rows: Sequence[Row], how: Asking) -> list[tuple[Step, ...]]:
        """What is listed at the steps of given responses."""
        ...

    def stop(self) -> None:
        """Ask for nothing more."""
        ...


@dataclass(frozen=True, eq=False)
class ListingTeacher:
    """Rollouts and evidence from an engine; the same tensors as those of a teacher at hand.

    Attributes:
        engine: who is asked.
        capture: what is kept.
        tokenizer_fingerprint: of the tokenizer that gives the ids their meaning.
        vocabulary_size: ids that it knows.
        end_ids: tokens that end a response.
        listed: how many tokens are listed at each step.
        incomplete: what happens to sets that these do not complete.
        unfinished: folder for the answers of units that are not written yet.
    """

    engine: Engine
    capture: CaptureConfig
    tokenizer_fingerprint: str
    vocabulary_size: int
    end_ids: tuple[int, ...]
    listed: int
    incomplete: Incomplete
    unfinished: Path

    def identity(self, config: CaptureConfig) -> CacheIdentity:
        """See :class:`tdistill.teacher.rollouts.UnitSampler`."""
        may_lack = self.incomplete == "accept" and self.listed < self._cap
        return CacheIdentity(
            teacher=self.engine.model,
            teacher_fingerprint=self.engine.fingerprint,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            vocabulary_size=self.vocabulary_size,
            **asdict(config),
            listed_tokens=self.listed if may_lack else None,
            normaliser=False,
        )

    def check(self, tokenizer: Any, longest: int) -> str:
        """Try the engine before work is spent; returns what was found, for people.

        Args:
            tokenizer: that gives the ids their meaning.
            longest: tokens of the longest row.

        Raises:
            ModelError: it cannot be used.
        """
        self.check_room(longest, "rollouts.max_new_tokens", reads=self.incomplete == "score")
        wanted = self._cap if self.incomplete == "score" else self.listed
        return self.engine.check(tokenizer, self._asking(wanted))

    def check_room(self, longest: int, field: str, *, reads: bool) -> None:
        """Refuse rows that are longer than the engine takes.

        Args:
            longest: tokens of the longest row.
            field: of the recipe, that its length is due to.
            reads: whether such rows are read, too, not only sampled.

        Raises:
            ModelError: they are.
        """
        longest += reads  # one token is sampled in vain
        room = self.engine.most_tokens
        if room is not None and longest > room:
            raise ModelError(
                f"{field}: expected rows of at most {room} tokens, all that "
                f"{self.engine.model} takes where it runs; found {longest} with the longest prompt;"
                " lower it, or start the server with a larger --max-model-len"
            )

    def sample_unit(self, unit: Unit, config: RolloutConfig) -> list[CachedResponse]:
        """See :class:`tdistill.teacher.rollouts.UnitSampler`."""
        places = range(unit.first, unit.first + len(unit.prompts))
        asked = [
            asked_for(prompt, unit.seed, place)
            for prompt, place in zip(unit.prompts, places, strict=True)
        ]
        how = self._asking(self.listed, config)
        answers = self._answers(asked, how, self._journal(unit, config))
        rows = [
            Row(prompt, answer.ids, answer.ended)
            for prompt, answer in zip(unit.prompts, answers, strict=True)
        ]
        steps = [answer.steps for answer in answers]
        sources = [f"rollout:{sample}" for sample in unit.samples]
        return self._responses(rows, steps, sources)

    def respond(
        self,
        asked: Sequence[Asked],
        decoding: Decoding,
        *,
        max_new_tokens: int,
        on_answer: Callable[[], None] = lambda: None,
    ) -> list[Answer]:
        """Responses by a decoding, without evidence; those that have come are not asked for again.

        Args:
            asked: what is wanted.
            decoding: how their tokens are chosen.
            max_new_tokens: length limit.
            on_answer: called for each, some time after it has come, never by two threads at once.
        """
        how = replace(
            self._asking(1),
            temperature=0.0 if decoding.greedy else decoding.temperature,
            sampling_top_p=1.0 if decoding.greedy else decoding.sampling_top_p,
            max_new_tokens=max_new_tokens,
        )
        key = key_of(asked, how, self.identity(self.capture))
        return self._answers(asked, how, self._journal_of(f"{_JUDGED}/{key}"), on_answer)

    def forget_responses(self) -> None:
        """Remove what :meth:`respond` keeps of those that have come."""
        shutil.rmtree(self.unfinished / _JUDGED, ignore_errors=True)

    def kept(self, unit: Unit, config: RolloutConfig) -> None:
        """See :class:`tdistill.teacher.rollouts.UnitSampler`."""
        self._journal(unit, config).remove()

    def stop(self) -> None:
        """See :class:`tdistill.teacher.rollouts.UnitSampler`."""
        self.engine.stop()

    def score(self, rows: Sequence[Row]) -> list[CachedResponse]:
        """Given responses with what the teacher lists at their steps."""
        steps = self.engine.read(rows, self._asking(self.listed))
        return self._responses(rows, steps, ["score"] * len(rows))

    def evidence(self, rows: Sequence[Row], *, set_top_p: float | None = None) -> Evidence:
        """See :class:`tdistill.evidence.evidence.EvidenceSource`."""
        found = concatenate([response.evidence for response in self.score(rows)])
        return found if set_top_p is None else found.cut(truncate(found.sets, set_top_p))

    def _journal(self, unit: Unit, config: RolloutConfig) -> Journal:
        return self._journal_of(key_of(unit, config, self.identity(config.capture)))

    def _journal_of(self, key: str) -> Journal:
        return Journal(self.unfinished / f"{key}.jsonl")

    def _answers(
        self,
        asked: Sequence[Asked],
        how: Asking,
        journal: Journal,
        on_answer: Callable[[], None] = lambda: None,
    ) -> list[Answer]:
        """The answers that the journal has, and the others, each noted there when it comes."""
        answers, alone = journal.read(), threading.Lock()
        left = [place for place in range(len(asked)) if place not in answers]
        for _ in answers:
            on_answer()

        def keep(number: int, answer: Answer) -> None:
            journal.add(left[number], answer)
            with alone:
                on_answer()

        found = self.engine.respond([asked[place] for place in left], how, keep)
        answers |= dict(zip(left, found, strict=True))
        return [answers[place] for place in range(len(asked))]

    def _asking(self, listed: int, config: RolloutConfig | None = None) -> Asking:
        top_p, most = (1.0, 1) if config is None else (config.sampling_top_p, config.max_new_tokens)
        return Asking(listed, top_p, most, self.end_ids, self.vocabulary_size)

    def _responses(
        self, rows: Sequence[Row], steps: Sequence[Sequence[Step]], sources: Sequence[str]
    ) -> list[CachedResponse]:
        parts = [listed_evidence(listed, self.capture) for listed in steps]
        short = [place for place, (_, incomplete) in enumerate(parts) if incomplete]
        if short and self.incomplete == "refuse":
            raise ModelError(self._refusal(sum(len(parts[place][1]) for place in short)))
        if short and self.incomplete == "score":
            again = self.engine.read([rows[place] for place in short], self._asking(self._cap))
            for place, listed in zip(short, again, strict=True):
                parts[place] = listed_evidence(listed, self.capture)
        return [
            CachedResponse(row, evidence, source, incomplete)
            for row, (evidence, incomplete), source in zip(rows, parts, sources, strict=True)
        ]

    @property
    def _cap(self) -> int:
        """Tokens that complete every set."""
        return min(self.capture.max_set_size or self.vocabulary_size, self.vocabulary_size)

    def _refusal(self, count: int) -> str:
        return (
            f"teacher.listed_tokens: expected the {self.listed} likeliest tokens to hold "
            f"captured_top_p = {self.capture.captured_top_p} of the mass, found {count} steps in a "
            "shard where they do not; list more, capture less, or set teacher.incomplete to score "
            "(asks once more for those responses) or accept (keeps and marks them)"
        )
