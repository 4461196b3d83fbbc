"""Work shared out among processes that never speak to each other: which part of a plan is whose.

A plan is a list of units, fixed before any of it is done; a share is every n-th of them. Each share
has a cache of its own beside the one that is wanted, with a note of the plan, so that whoever puts
them together can tell what is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tdistill.checks import check
from tdistill.errors import CacheError, InvalidValueError
from tdistill.files import write_atomically
from tdistill.plain_json import read_json_object

NOTE = "share.json"
_MOST_UNITS = 1 << 20
_Unit = TypeVar("_Unit")


@dataclass(frozen=True)
class Share:
    """Every n-th unit of a plan, so that every share has long and short prompts.

    Attributes:
        number: which of the shares, from 1.
        count: how many there are.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse a share that is none of them."""
        check("shard", 1 <= self.number <= self.count, "i/n with i from 1 to n", str(self))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, units: Sequence[_Unit]) -> Sequence[_Unit]:
        """Its part of a plan.

        Example:
            >>> Share(2, 3).of("abcdefg")
            'be'
        """
        return units[self.number - 1 :: self.count]

    def holds(self, place: int) -> bool:
        """Whether a unit of the plan is its own."""
        return place % self.count == self.number - 1

    def folder(self, cache: Path) -> Path:
        """Where its part of a cache is: beside it.

        Example:
            >>> Share(2, 8).folder(Path("run/cache")).name
            'cache-2-of-8'
        """
        return cache.with_name(f"{cache.name}-{self.number}-of-{self.count}")


WHOLE = Share()


def read_share(text: str) -> Share:
    """The share that is written ``i/n``.

    Raises:
        InvalidValueError: it is written otherwise.

    Example:
        >>> read_share("2/8")
        Share(number=2, count=8)
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None:
        raise InvalidValueError(f"--shard: expected i/n, as in 2/8, found {text}; write it so")
    return Share(int(found[1]), int(found[2]))


def share_folders(cache: Path) -> list[Path]:
    """The caches of shares that lie beside a cache, by their numbers."""
    pattern = re.compile(re.escape(cache.name) + r"-(\d+)-of-(\d+)")
    pairs = [(pattern.fullmatch(f.name), f) for f in cache.parent.glob(f"{cache.name}-*-of-*")]
    found = [(int(m[2]), int(m[1]), f) for m, f in pairs if m is not None and f.is_dir()]
    return [folder for *_, folder in sorted(found)]


@dataclass(frozen=True)
class PlanNote:
    """What a share is a part of.

    Attributes:
        plan: name of the plan; those of its shards are ``PLAN-00000``, ``PLAN-00001``, ...
        units: how many there are.
        share: which of them are this share's.
    """

    plan: str
    units: int
    share: Share

    @property
    def names(self) -> list[str]:
        """Names of all shards of the plan."""
        return [f"{self.plan}-{number:05d}" for number in range(self.units)]

    def write(self, folder: Path) -> None:
        """Keep it in the share's folder."""
        share = [self.share.number, self.share.count]
        content = {"plan": self.plan, "units": self.units, "share": share}
        write_atomically(folder / NOTE, json.dumps(content))


def note_of(names: Sequence[str], share: Share) -> PlanNote:
    """The note of a plan with shards of these names, at least one."""
    return PlanNote(names[0].rpartition("-")[0], len(names), share)


def read_note(folder: Path) -> PlanNote | None:
    """The note in a folder; None where there is none.

    Raises:
        CacheError: the file is something else.
    """
    path = folder / NOTE
    if not path.exists():
        return None
    try:
        content = read_json_object(path)
        number, count = content["share"]
        plan, units = str(content["plan"]), int(content["units"])
        check("units", units <= _MOST_UNITS, f"at most {_MOST_UNITS}", units)
        return PlanNote(plan, units, Share(number, count))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CacheError(
            f"{path}: expected the note of a share, found something else; run the command that "
            "made the share again"
        ) from error
