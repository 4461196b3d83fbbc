"""Responses that are there already: in a cache, or in a source of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tdistill.data import DataConfig, Example, load_examples
from tdistill.errors import CacheError, DataError
from tdistill.evidence.rows import Row
from tdistill.files import expanded
from tdistill.run.supplies import Scored, Supply
from tdistill.teacher.cache.cached_rows import prompts_of, select_rows
from tdistill.teacher.cache.manifest import MANIFEST, read_manifest
from tdistill.teacher.cache.merging import merge_caches
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.listing.teacher import ListingTeacher
from tdistill.teacher.rollouts import PromptIds
from tdistill.teacher.source import LiveTeacher


@dataclass(frozen=True)
class Given:
    """Responses of a cache that exists: its shards are linked, not copied, where the disk can.

    Attributes:
        cache: its folder.
        capture: what must have been captured.
        kept: whether responses to a prompt are among these.
        each: most responses to a prompt; None: all.
        teachers: how often each response of a teacher comes, by name or fingerprint; None: once.
    """

    cache: Path
    capture: CaptureConfig
    kept: Callable[[PromptIds], bool]
    each: int | None = None
    teachers: Mapping[str, int] | None = None

    @property
    def shards(self) -> list[str]:
        """See :class:`Supply`."""
        return [shard.name.removesuffix(".arrow") for shard in read_manifest(self.cache).shards]

    def open(self, tokenizer_fingerprint: str) -> Cache:
        """The cache, if it can be used as the recipe asks.

        Raises:
            CacheError: of another tokenizer, captured otherwise, damaged.
        """
        found, wanted = asdict(read_manifest(self.cache).identity), asdict(self.capture)
        other = {k: found[k] for k in wanted if found[k] != wanted[k]}
        if other:
            words = ", ".join(f"{k}: {v}" for k, v in other.items())
            raise CacheError(
                f"rollouts.cache: expected evidence captured as rollouts.capture says, found "
                f"{words} in {self.cache}; write rollouts.capture: {{{words}}} into the recipe"
            )
        return Cache(self.cache, tokenizer_fingerprint=tokenizer_fingerprint)

    def fill(self, folder: Path) -> int:
        """See :class:`Supply`."""
        merge_caches(folder, [self.cache])
        return len(self.rows(Cache(folder)))

    def rows(self, cache: Cache) -> Sequence[Row]:
        """See :class:`Supply`."""
        manifest = read_manifest(self.cache)
        often = None if self.teachers is None else often_of(self.teachers, manifest.teachers)
        names = {shard.name for shard in manifest.shards}
        found = cache.rows(names=names, often=often).where(self.kept)
        return found if self.each is None else _first_of_each(found, self.each)


def often_of(wanted: Mapping[str, int], known: Mapping[str, str]) -> dict[str, int]:
    """How often the rows of each teacher come, by its fingerprint.

    Args:
        wanted: by name or fingerprint.
        known: names of the teachers of a cache, by their fingerprints.

    Raises:
        CacheError: a name is that of none of them, or of several.

    Example:
        >>> often_of({"large": 2, "f1": 1}, {"f0": "large", "f1": "small"})
        {'f0': 2, 'f1': 1}
    """
    found: dict[str, int] = {}
    for name, times in wanted.items():
        keys = [key for key, teacher in known.items() if name in (key, teacher)]
        if len(keys) != 1:
            there = ", ".join(f"{teacher} ({key})" for key, teacher in known.items())
            raise CacheError(
                f"rollouts.teachers: expected {name} to be one teacher of the cache, found "
                f"{len(keys)} among {there}; write a name or a fingerprint of these"
            )
        found[keys[0]] = times
    return found


def given_cache(path: str, split: str) -> Path:
    """The cache of a split at a path that is a cache, or the folder of a run.

    Raises:
        CacheError: it is neither.
    """
    place = expanded(path)
    if (place / MANIFEST).exists():
        return place
    own = [place / name for name in (f"cache-{split}", "cache")]  # there is no cache-train
    found = [folder for folder in own if (folder / MANIFEST).exists()]
    if not found:
        raise CacheError(
            f"rollouts.cache: expected a teacher cache or the folder of a run that has one, found "
            f"neither in {place}; make one with `tdistill rollouts` or `tdistill score`"
        )
    return found[0]


@dataclass(frozen=True)
class Divided:
    """Which responses are trained on, and which are judged on; those to prompts of neither.

    Attributes:
        test: the examples of the test.
        valid: those of validation, whose responses are not used.
        each: most responses to a test prompt.
    """

    test: Sequence[Example]
    valid: Sequence[Example]
    each: int

    def trained(self, prompt: PromptIds) -> bool:
        """Whether a prompt is none of theirs."""
        return prompt not in self._held_out and prompt not in self._unseen

    def judged(self, prompt: PromptIds) -> bool:
        """Whether a prompt is one of the test."""
        return prompt in self._held_out

    @cached_property
    def _held_out(self) -> set[PromptIds]:
        return {example.prompt_ids for example in self.test}

    @cached_property
    def _unseen(self) -> set[PromptIds]:
        return {example.prompt_ids for example in self.valid}

    def references(self, found: Sequence[Row], field: str) -> Sequence[Row]:
        """What is judged on: the responses found, else those that the test data have.

        Raises:
            DataError: there are neither.
        """
        own = [row_of(example) for example in self.test if example.reference_ids]
        if not found and not own:
            raise DataError(
                f"{field}: expected responses to the test prompts, to judge on; found none there "
                "and none in data.test; put some into one of the two"
            )
        return _first_of_each(found or own, self.each)

    def scored(
        self, responses: Sequence[Row], teacher: Callable[[], LiveTeacher | ListingTeacher]
    ) -> dict[str, Supply]:
        """Supplies of training and test from responses that the teacher reads once.

        Raises:
            DataError: there is nothing to train on, or to judge on.
        """
        field = "rollouts.responses"
        train = [row for row in responses if self.trained(row.prompt_ids)]
        _refuse_none(train, len(responses), field)
        test = self.references([row for row in responses if self.judged(row.prompt_ids)], field)
        return {
            "train": Scored("rollouts", train, teacher),
            "test": Scored("held-out", test, teacher),
        }

    def given(
        self,
        path: str,
        capture: CaptureConfig,
        fingerprint: str,
        teacher: Callable[[], LiveTeacher | ListingTeacher],
        *,
        teachers: Mapping[str, int] | None = None,
    ) -> dict[str, Supply]:
        """Supplies of training and test from a cache, or from the run in a folder.

        Args:
            path: of either.
            capture: what must have been captured.
            fingerprint: of the tokenizer.
            teacher: reads the test's references, where there are no responses to its prompts.
            teachers: which of those of the cache are trained on, and how often their rows come.

        Raises:
            CacheError: there is no cache, or it cannot be used.
            DataError: there is nothing to train on, or to judge on.
        """
        field = "rollouts.cache"
        place = given_cache(path, "train")
        train = Given(place, capture, self.trained, teachers=teachers)
        test = Given(given_cache(path, "test"), capture, self.judged, self.each)
        cache = train.open(fingerprint)
        _refuse_none(train.rows(cache), len(cache), field)
        held_out = test.rows(cache if test.cache == train.cache else test.open(fingerprint))
        if held_out:
            return {"train": train, "test": test}
        return {"train": train, "test": Scored("held-out", self.references([], field), teacher)}


def load_rows(
    source: str,
    tokenizer: Any,
    config: DataConfig,
    *,
    limit: int | None = None,
    clock: datetime | None = None,
) -> tuple[list[Row], str]:
    """Prompts with all responses of each, from a source of data, and what its doctor found.

    Args:
        source: as in ``DataConfig``.
        tokenizer: of the teacher.
        config: format, template and lengths.
        limit: number of rows of the source that are read.
        clock: the moment that chat templates are told.

    Raises:
        DataError: a row has no response, or the source cannot be read.
    """
    examples, report = load_examples(
        source,
        tokenizer,
        config,
        limit=limit,
        require_references=True,
        every_response=True,
        clock=clock,
    )
    return list(map(row_of, examples)), report.text()


def row_of(example: Example) -> Row:
    """The first response of an example, as ground truth."""
    ids = example.reference_ids
    return Row(example.prompt_ids, ids, example.reference_ended, "reference")


def _refuse_none(train: Sequence[Row], there: int, field: str) -> None:
    if not train:
        raise DataError(
            f"{field}: expected responses to train on, found {there} and all of them to prompts of "
            "validation or test; name another source, or other data.valid and data.test"
        )


def _first_of_each(rows: Sequence[Row], each: int) -> Sequence[Row]:
    seen: dict[PromptIds, int] = {}
    kept = []
    for number, prompt in enumerate(prompts_of(rows)):
        seen[prompt] = seen.get(prompt, 0) + 1
        if seen[prompt] <= each:
            kept.append(number)
    return select_rows(rows, kept)
