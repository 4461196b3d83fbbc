"""The commands on a teacher cache: fill it from given responses, merge, look into it, export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from tdistill.checks import check_at_least
from tdistill.cli.options import DATA_FIELDS, ReadingOptions, given_fields
from tdistill.data.config import DataConfig
from tdistill.errors import printable
from tdistill.models.weights import WeightsConfig
from tdistill.progress import Progress, quiet_libraries, tell
from tdistill.teacher.config import CaptureConfig

if TYPE_CHECKING:
    from tdistill.evidence.rows import Row


@dataclass(frozen=True)
class ScoreCommand(ReadingOptions):
    """Capture the teacher's evidence for given responses, by one forward pass each."""

    teacher: str
    """The teacher: a folder, hub:NAME, or package:NAME."""
    data: str
    """Prompts with responses: JSONL, Parquet or a datasets folder (see DataConfig)."""
    cache: Path
    """Cache to create or append to."""
    gguf_file: str | None = None
    """Name of a GGUF file in the teacher's folder."""
    run: Path | None = None
    """Folder of a run whose section `data` and whose date the prompts are rendered with."""
    shard: str | None = None
    """Score only a share, i/n, into a cache of its own beside it, for `tdistill merge CACHE`."""
    batch_size: int = 32
    """Rows of one forward pass."""
    capture: CaptureConfig = field(default_factory=CaptureConfig)


@dataclass(frozen=True)
class MergeCommand:
    """Put the shares of a run's rollouts, or of a cache, together: linked, not copied."""

    target: tyro.conf.Positional[Path]
    """Folder of the run, or of the cache."""
    sources: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Runs, or caches, whose shares are elsewhere; left out: those beside the target's own."""
    several_teachers: bool = False
    """Caches of different teachers with the same tokens: each row keeps its own."""


@dataclass(frozen=True)
class InspectCommand:
    """What a cache holds: rows, sizes, coverage, bounds."""

    cache: tyro.conf.Positional[Path]
    """Folder of the cache, or of the run that has it."""
    json: bool = False
    """Print plain JSON."""
    discount: float = 0.99
    """Gamma of the bounds."""
    gap: float | None = None
    """Nats of Q that may be lost: prints the p, and the gain for each state, that this asks for."""


@dataclass(frozen=True)
class VerifyCommand:
    """Check every shard of a cache: checksum, counts, order, ranges, what the manifest claims."""

    cache: tyro.conf.Positional[Path]
    """Folder of the cache, or of the run that has it."""
    drop: bool = False
    """Take missing and damaged shards out, so that the command that made them makes them again."""


@dataclass(frozen=True)
class ExportCacheCommand:
    """Write a cache as one Parquet file, which pandas, DuckDB and `datasets` open."""

    cache: tyro.conf.Positional[Path]
    """Folder of the cache, or of the run that has it."""
    out: tyro.conf.Positional[Path]
    """File to write."""


def score(words: list[str]) -> int:
    """Add the evidence of given responses to a cache."""
    command = tyro.cli(ScoreCommand, args=words, prog="tdistill score")
    from tdistill.teacher.shares import WHOLE, read_share

    check_at_least(1, batch_size=command.batch_size, limit=command.limit)
    share = WHOLE if command.shard is None else read_share(command.shard)
    quiet_libraries()
    from tdistill.models.finite import keeping_bad_batch
    from tdistill.models.positions import check_rows
    from tdistill.teacher.cache.writer import CacheWriter, identity_of
    from tdistill.teacher.loading import load_stopping
    from tdistill.teacher.scoring import collect_scores, planned_score_shards
    from tdistill.teacher.shares import note_of
    from tdistill.teacher.source import LiveTeacher

    data, clock = _data_of(command)
    weights = WeightsConfig(command.dtype)
    teacher = load_stopping(command.teacher, data, gguf_file=command.gguf_file, weights=weights)
    rows = read_responses(data, teacher.tokenizer, limit=command.limit, clock=clock)
    warning = check_rows(teacher, rows, "--max-response-tokens")
    if warning is not None:
        tell(f"  {warning}")
    live = LiveTeacher(teacher, command.capture)
    folder = command.cache if command.shard is None else share.folder(command.cache)
    writer = CacheWriter(folder, identity_of(teacher, command.capture), beside=command.cache)
    size = command.batch_size
    plan = planned_score_shards(rows, batch_size=size)
    bar, done = Progress("score", len(rows) // share.count, "responses"), 0
    with writer, keeping_bad_batch(folder / "failed.json"):
        if command.shard is not None:
            note_of(plan, share).write(folder)
        options = {"batch_size": size, "share": share, "on_finished": bar.advance}
        done = sum(collect_scores(live, rows, writer, **options))
    bar.close()
    if command.shard is not None:
        print(printable(f"share {share} done; at the end of all: tdistill merge {command.cache}"))
    return inspect([str(folder)]) if done else 0


def _data_of(command: ScoreCommand) -> tuple[DataConfig, datetime | None]:
    """How the data are read and rendered, and the date that templates are told."""
    given: dict[str, Any] = {"train": command.data} | given_fields(command, DATA_FIELDS)
    if command.run is None:
        return DataConfig(**given), None
    config, clock = rendering_of(command.run)
    return replace(config, **given), clock


def rendering_of(run: Path) -> tuple[DataConfig, datetime | None]:
    """How a run renders prompts: its section ``data``, and its date.

    Raises:
        InvalidValueError: no run was made in the folder.
    """
    from tdistill.recipe import read_recipe
    from tdistill.run.examples import read_clock
    from tdistill.run.folders import resolved_recipe

    return read_recipe(resolved_recipe(run)).data, read_clock(run)


def read_responses(
    data: DataConfig,
    tokenizer: Any,
    *,
    limit: int | None = None,
    clock: datetime | None = None,
) -> list[Row]:
    """All responses of the rows of a source of data, after its report is printed.

    Args:
        data: its ``train`` is the source.
        tokenizer: of the teacher.
        limit: number of rows of the source that are read.
        clock: the moment that chat templates are told; None: now.
    """
    from tdistill.run.given import load_rows

    rows, report = load_rows(data.train, tokenizer, data, limit=limit, clock=clock)
    tell(report)
    return rows


def merge(words: list[str]) -> int:
    """Put shares together; nothing is sampled or scored."""
    command = tyro.cli(MergeCommand, args=words, prog="tdistill merge")
    from tdistill.teacher.cache.merging import merge_caches

    for cache, sources in _merges(command.target, command.sources):
        done = merge_caches(cache, sources, several_teachers=command.several_teachers)
        told = (
            f"{cache}: {done.rows} responses in {done.shards} shards, {done.brought} of them from"
        )
        print(printable(f"{told} {len(sources)} caches"))
    return 0


def _merges(target: Path, sources: Sequence[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Each cache to make, with what goes into it."""
    from tdistill.teacher.shares import share_folders

    known = ("cache", "cache-test")
    runs = [target, *sources] if sources else [target]
    if any(share_folders(run / "cache") for run in runs):
        for name in known:
            found = [folder for run in runs for folder in share_folders(run / name)]
            if found:
                yield target / name, found
    else:
        yield target, list(sources) or share_folders(target)


def inspect(words: list[str]) -> int:
    """Say what a cache holds."""
    command = tyro.cli(InspectCommand, args=words, prog="tdistill inspect")
    from tdistill.teacher.cache.reader import Cache
    from tdistill.teacher.inspection import inspect_cache, inspection_text

    numbers = inspect_cache(
        Cache(_cache_folder(command.cache)), discount=command.discount, gap=command.gap
    )
    tell(json.dumps(numbers, indent=1) if command.json else inspection_text(numbers))
    return 0


def _cache_folder(folder: Path) -> Path:
    """The folder itself, or the cache of the run in it."""
    within = folder / "cache"
    own = (folder / "manifest.json").exists() or not (within / "manifest.json").exists()
    return folder if own else within


def verify(words: list[str]) -> int:
    """Say what is damaged in a cache; the status is 1 where something is."""
    command = tyro.cli(VerifyCommand, args=words, prog="tdistill verify")
    from tdistill.teacher.cache.reader import Cache
    from tdistill.teacher.cache.verification import verify_cache

    if command.drop:
        from tdistill.teacher.cache.writer import drop_damaged

        dropped = drop_damaged(_cache_folder(command.cache))
        tell(f"{command.cache}: taken out: {', '.join(dropped) or 'nothing'}")
    cache = Cache(_cache_folder(command.cache), again=True)
    problems = verify_cache(cache)
    for problem in problems:
        tell(f"damaged: {problem}", error=True)
    if not problems:
        rows, shards = cache.manifest.rows, len(cache.manifest.shards)
        print(printable(f"{command.cache}: sound; {rows} rows in {shards} shards"))
    return 1 if problems else 0


def export_cache(words: list[str]) -> int:
    """Write a cache as Parquet."""
    command = tyro.cli(ExportCacheCommand, args=words, prog="tdistill export-cache")
    from tdistill.teacher.cache import export
    from tdistill.teacher.cache.reader import Cache

    rows = export.write_parquet(Cache(_cache_folder(command.cache)), command.out)
    print(printable(f"{command.out}: {rows} responses, {command.out.stat().st_size:,} bytes"))
    return 0
