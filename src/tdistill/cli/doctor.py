"""The command that looks before a run does: files, data, models, packages, room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tdistill.cli.run import helped, read_words
from tdistill.progress import tell

if TYPE_CHECKING:
    from tdistill.run.checks import Finding

_MARKS = {"fine": "fine    ", "doubtful": "doubtful", "wrong": "wrong   "}


def doctor(words: list[str]) -> int:
    """Say what is fine, what is doubtful and what will fail; the status is 1 where something will.

    Nothing is sampled or trained, and nothing is written outside a temporary folder.
    """
    if helped("doctor", words):
        return 0
    recipe, out = read_words("doctor", words, out="run")
    from tdistill.run.checks import findings, quick_checks, thorough_checks
    from tdistill.run.groundwork import Groundwork

    found = list(_told(findings(quick_checks(recipe, out))))
    world_is_made = recipe.world is None
    if world_is_made and all(finding.error is None for finding in found):
        with TemporaryDirectory() as place:
            ground = Groundwork(recipe, Path(place), tell)
            found += _told(findings(thorough_checks(ground, out)))
    elif not world_is_made:
        print("  the world of this recipe is not made: what is in it was not looked at")
    wrong = sum(finding.error is not None for finding in found)
    doubtful = sum(finding.level == "doubtful" for finding in found)
    print(f"{len(found)} checks: {wrong} wrong, {doubtful} doubtful")
    return 1 if wrong else 0


def _told(found: Iterator[Finding]) -> Iterator[Finding]:
    """The findings, each printed when it is there."""
    for finding in found:
        tell(f"  {_MARKS[finding.level]}  {finding.what}: {finding.text}")
        yield finding
