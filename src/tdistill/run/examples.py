"""The examples of a run, split by split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tdistill.data import DataConfig, DoctorReport, Example, load_examples
from tdistill.data.examples import refuse_faults
from tdistill.data.readers import SourceRow
from tdistill.data.sources import read_rows
from tdistill.data.splitting import split_rows
from tdistill.errors import DataError
from tdistill.files import write_atomically
from tdistill.plain_json import read_json_object
from tdistill.recipe import Recipe
from tdistill.run.folders import RENDERING
from tdistill.run.stages import Say

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class _Part:
    """Where the rows of a split come from."""

    source: str
    limit: int | None
    rows: Sequence[SourceRow] | None  # None: not read yet


def load_splits(
    config: DataConfig,
    tokenizer: Any,
    say: Say,
    *,
    clock: datetime,
    references_for: str | None = None,
) -> tuple[dict[str, list[Example]], str]:
    """Training, validation and test examples, none of whose prompts are in two of them.

    Prompts of training are left out of the other two, and those of the test out of validation: what
    is chosen on validation prompts must not be chosen on the test's.

    Args:
        config: of the data.
        tokenizer: shared by teacher and student.
        say: prints a line for people.
        clock: the moment that chat templates are told.
        references_for: the field of the recipe that trains on the responses of the training data;
            None: nothing does.

    Returns:
        The examples by split, and what the data doctor found.

    Raises:
        DataError: if no test prompt is left, the template cannot express too many rows, or there
            are no responses where they are trained on.
    """
    parts, told = _parts(config)
    for line in told:
        say(f"  {line}")
    loaded: dict[str, list[Example]] = {"valid": []}
    reports: dict[str, DoctorReport] = {}
    for split, part in parts.items():
        loaded[split], reports[split] = load_examples(
            part.source, tokenizer, config, limit=part.limit, clock=clock, rows=part.rows
        )
    told += [report.text() for report in reports.values()]
    say(reports["train"].text())
    if references_for is not None:
        refuse_faults(reports["train"], config, responses=True)
        _refuse_without_responses(loaded["train"], reports["train"], references_for)
    for split, other in (("test", "train"), ("valid", "train"), ("valid", "test")):
        seen = {example.prompt_ids for example in loaded[other]}
        unseen = [e for e in loaded[split] if e.prompt_ids not in seen]
        if len(unseen) < len(loaded[split]):
            dropped = len(loaded[split]) - len(unseen)
            say(f"  {split}: left out {dropped} prompts that are also in {other}")
        loaded[split] = unseen
    if not loaded["test"]:
        raise DataError(
            f"{reports['test'].source}: expected test prompts that are not in {config.train}, "
            "found none; name another data.test"
        )
    return loaded, "\n\n".join(told)


def references_field(recipe: Recipe) -> str | None:
    """The field of a recipe by which responses of the training data are trained on, if any is."""
    if recipe.start is not None and recipe.start.rows != "teacher":
        return f"start.rows: {recipe.start.rows}"
    for label, objective in recipe.objectives.items():
        if objective.rows == "references":
            return f"objectives.{label}"
        if objective.reference_share:
            return f"objectives.{label}.reference_share"
    return None


def _parts(config: DataConfig) -> tuple[dict[str, _Part], list[str]]:
    """The source of each split, with the rows that `auto` takes from training; and what it took."""
    given: Mapping[str, Sequence[SourceRow]] = {}
    told: list[str] = []
    if config.split_off:
        given = split_rows(read_rows(config.train), config.train, config)
        told = [_split_text(config, given)]
    parts: dict[str, _Part] = {}
    for split in SPLITS:
        source, limit = getattr(config, split), getattr(config, f"limit_{split}")
        if split in given and not given[split]:
            continue  # a share of nothing
        if source is not None:
            named = f"{config.train} (part: {split})" if split in given else source
            parts[split] = _Part(named, limit, given.get(split))
    return parts, told


def _split_text(config: DataConfig, given: Mapping[str, Sequence[SourceRow]]) -> str:
    counts = ", ".join(f"{len(rows)} to {split}" for split, rows in given.items())
    fields = " and ".join(f"data.{split}" for split in config.split_off)
    return (
        f"{fields}: auto, so the rows of {config.train} are divided by their prompts "
        f"(data.split_seed {config.split_seed}): {counts}"
    )


def now() -> datetime:
    """The moment that chat templates of a new run are told."""
    return datetime.now().replace(microsecond=0)


def write_clock(folder: Path, clock: datetime) -> None:
    """Keep the moment in ``rendering.json``, so that a run is the same whenever it goes on."""
    write_atomically(folder / RENDERING, json.dumps({"clock": clock.isoformat()}))


def read_clock(folder: Path) -> datetime | None:
    """The moment that chat templates of a run were told; None before it began.

    Raises:
        DataError: the file that keeps it was changed into something else.
    """
    path = folder / RENDERING
    if not path.exists():
        return None
    try:
        return datetime.fromisoformat(read_json_object(path)["clock"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path}: expected {{"clock": "YYYY-MM-DDTHH:MM:SS"}}, the moment that the run began; '
            "found something else. Restore the file, or delete it to render with today's date."
        ) from error


def _refuse_without_responses(
    examples: Sequence[Example], report: DoctorReport, references_for: str
) -> None:
    if any(example.reference_ids for example in examples):
        return
    unused = f" (not used: the columns {', '.join(report.ignored)})" if report.ignored else ""
    raise DataError(
        f"{references_for}: expected responses in {report.source}, to train on; found "
        f"none{unused}. Name their column, as in data.columns: {{response: COLUMN}}, or train on "
        "the teacher's rows alone (start.rows: teacher; objectives without references)."
    )
