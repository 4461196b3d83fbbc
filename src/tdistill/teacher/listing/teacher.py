"""A teacher that lists its likeliest tokens: samples units of work, and reads given responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tdistill.core import truncate
from tdistill.errors import ModelError
from tdistill.evidence.evidence import Evidence, concatenate
from tdistill.evidence.rows import Row
from tdistill.hashing import key_of
from tdistill.models.generation import seed_of
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.row_encoder import CachedResponse
from tdistill.teacher.config import CaptureConfig, Incomplete, RolloutConfig
from tdistill.teacher.listing.journal import Journal
from tdistill.teacher.listing.steps import Answer, Asked, Asking, Step, listed_evidence
from tdistill.teacher.rollouts import Unit

_SEEDS = 1 << 31  # engines take 32 bits with a sign


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
        longest += self.incomplete == "score"  # one token is sampled in vain
        room = self.engine.most_tokens
        if room is not None and longest > room:
            raise ModelError(
                f"rollouts.max_new_tokens: expected rows of at most {room} tokens, all that "
                f"{self.engine.model} takes where it runs; found {longest} with the longest prompt;"
                " lower it, or start the server with a larger --max-model-len"
            )
        wanted = self._cap if self.incomplete == "score" else self.listed
        return self.engine.check(tokenizer, self._asking(wanted))

    def sample_unit(self, unit: Unit, config: RolloutConfig) -> list[CachedResponse]:
        """See :class:`tdistill.teacher.rollouts.UnitSampler`."""
        places = range(unit.first, unit.first + len(unit.prompts))
        asked = [
            Asked(prompt, seed_of(unit.seed, place) % _SEEDS)
            for prompt, place in zip(unit.prompts, places, strict=True)
        ]
        journal = self._journal(unit, config)
        answers = journal.read()
        left = [place for place in range(len(asked)) if place not in answers]

        def keep(number: int, answer: Answer) -> None:
            journal.add(left[number], answer)

        how = self._asking(self.listed, config)
        found = self.engine.respond([asked[place] for place in left], how, keep)
        answers |= dict(zip(left, found, strict=True))
        rows = [
            Row(prompt, answers[place].ids, answers[place].ended)
            for place, prompt in enumerate(unit.prompts)
        ]
        steps = [answers[place].steps for place in range(len(rows))]
        sources = [f"rollout:{sample}" for sample in unit.samples]
        return self._responses(rows, steps, sources)

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
        key = key_of(unit, config, self.identity(config.capture))
        return Journal(self.unfinished / f"{key}.jsonl")

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
