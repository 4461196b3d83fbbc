"""A folder that already holds another run: what will be done again, why, and what is kept of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tdistill.recipe import Recipe, differences, recipe_dict, rooted
from tdistill.run.folders import RESOLVED_RECIPE, STUDENT, seed_folder
from tdistill.run.keys import seeded, stage_keys
from tdistill.run.stages import read_record
from tdistill.teacher.cache.manifest import MANIFEST, CacheIdentity, read_manifest
from tdistill.teacher.cache.writer import differences_of

Evidence = Callable[[], CacheIdentity | None]

REPLACED = "replaced"
_RESULTS = ("metrics.json", "report.html", "data-doctor.txt", RESOLVED_RECIPE)
_OUTPUTS = {"student": "models/untrained", "publish": STUDENT}  # of stages that make no own model
_CACHES = ("cache", "cache-test")
_MOST_NAMED = 6


@dataclass(frozen=True)
class Replacement:
    """How a recipe differs from the run that is in its folder.

    Attributes:
        folder: of the run.
        changes: fields with both values.
        again: finished stages that the recipe makes anew, by their path in the folder.
        caches: whether the evidence there is of another teacher, or was captured otherwise.
    """

    folder: Path
    changes: tuple[str, ...] = ()
    again: tuple[Path, ...] = ()
    caches: bool = False

    def __bool__(self) -> bool:
        """Whether anything that was finished will be replaced."""
        return (
            bool(self.again)
            or self.caches
            or (bool(self.changes) and (self.folder / "metrics.json").exists())
        )

    def text(self) -> str:
        """What is going to happen, in lines for people."""
        names = [str(path.with_suffix("")).replace("stages/", "") for path in self.again]
        return (
            f"  {self.folder} holds another run: {_some(self.changes) or 'other input files'}\n"
            f"  made again: {_some(names) or 'the report'}; what was finished before is kept in "
            f"{self.folder / REPLACED} until the next change"
        )

    def keep(self) -> None:
        """Move the results that will be replaced out of the way, those replaced before go."""
        kept = self.folder / REPLACED
        shutil.rmtree(kept, ignore_errors=True)
        for place in self._places():
            if place.exists():
                target = kept / place.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                place.rename(target)

    def _places(self) -> Iterator[Path]:
        yield from (self.folder / name for name in _RESULTS)
        yield from (self.folder / name for name in (_CACHES if self.caches else ()))
        for path in self.again:
            record = self.folder / path
            yield record
            yield record.parent.parent / _OUTPUTS.get(record.stem, f"models/{record.stem}")


def replacement(recipe: Recipe, folder: Path, evidence: Evidence) -> Replacement:
    """What the run in a folder has that a recipe would replace.

    Args:
        recipe: what is going to be done.
        folder: of the run; nothing is written.
        evidence: the identity that caches must have; None where they are not written to any more.
    """
    try:
        before = yaml.safe_load((folder / RESOLVED_RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return Replacement(folder)
    after = rooted(recipe_dict(recipe), Path())
    changes = [
        f"{path}: {old} before, {new} now"
        for path, old, new in differences(before if isinstance(before, dict) else {}, after)
    ]
    again = [
        stage.relative_to(folder)
        for number in range(recipe.seeds)
        for stage in _outdated(
            seed_folder(folder, number) / "stages", stage_keys(seeded(recipe, number))
        )
    ]
    return Replacement(folder, tuple(changes), tuple(again), _others(folder / "cache", evidence))


def _others(cache: Path, evidence: Evidence) -> bool:
    """Whether a cache holds what may not be mixed with the evidence that will be written."""
    expected = evidence() if (cache / MANIFEST).exists() else None
    return expected is not None and bool(differences_of(read_manifest(cache).identity, expected))


def _outdated(stages: Path, keys: Mapping[str, str]) -> Iterator[Path]:
    """Records of stages that were finished with another key."""
    for name, key in keys.items():
        path = stages / f"{name}.json"
        record = read_record(path)
        if record is not None and record["key"] != key:
            yield path


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return "; ".join(texts[:_MOST_NAMED]) + more
