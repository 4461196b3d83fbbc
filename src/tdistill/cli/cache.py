"""The commands on a teacher cache: fill it from given responses, look into it, check, export."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from tdistill.progress import Progress, quiet_libraries, tell
from tdistill.teacher.config import CaptureConfig

if TYPE_CHECKING:
    from tdistill.evidence.rows import Row


@dataclass(frozen=True)
class ScoreCommand:
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
    batch_size: int = 32
    """Rows of one forward pass."""
    capture: CaptureConfig = field(default_factory=CaptureConfig)


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
    quiet_libraries()
    from tdistill.models.finite import keeping_bad_batch
    from tdistill.teacher.cache.writer import CacheWriter, identity_of
    from tdistill.teacher.loading import load_stopping
    from tdistill.teacher.scoring import collect_scores
    from tdistill.teacher.source import LiveTeacher

    teacher = load_stopping(command.teacher, gguf_file=command.gguf_file)
    rows = read_responses(command.data, teacher.tokenizer, command.run)
    live = LiveTeacher(teacher, command.capture)
    bar = Progress("score", len(rows), "responses")
    writer = CacheWriter(command.cache, identity_of(teacher, command.capture))
    with writer, keeping_bad_batch(command.cache / "failed.json"):
        size, heard = command.batch_size, bar.advance
        for _ in collect_scores(live, rows, writer, batch_size=size, on_finished=heard):
            pass
    bar.close()
    return inspect([str(command.cache)])


def read_responses(data: str, tokenizer: Any, run: Path | None = None) -> list[Row]:
    """Prompts with responses from a source of data, after its report is printed.

    Args:
        data: the source.
        tokenizer: of the teacher.
        run: folder of a run whose section ``data`` and whose date are used; None: the defaults.
    """
    from tdistill.data import DataConfig, load_examples
    from tdistill.evidence.rows import Row

    config, clock = DataConfig(train=data), None
    if run is not None:
        from tdistill.recipe import read_recipe
        from tdistill.run.examples import read_clock
        from tdistill.run.folders import resolved_recipe

        config, clock = read_recipe(resolved_recipe(run)).data, read_clock(run)
    examples, report = load_examples(data, tokenizer, config, require_references=True, clock=clock)
    tell(report.text())
    return [Row(e.prompt_ids, e.reference_ids, e.reference_ended) for e in examples]


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
    cache = Cache(_cache_folder(command.cache))
    problems = verify_cache(cache)
    for problem in problems:
        tell(f"damaged: {problem}", error=True)
    if not problems:
        rows, shards = cache.manifest.rows, len(cache.manifest.shards)
        print(f"{command.cache}: sound; {rows} rows in {shards} shards")
    return 1 if problems else 0


def export_cache(words: list[str]) -> int:
    """Write a cache as Parquet."""
    command = tyro.cli(ExportCacheCommand, args=words, prog="tdistill export-cache")
    from tdistill.teacher.cache import export
    from tdistill.teacher.cache.reader import Cache

    rows = export.write_parquet(Cache(_cache_folder(command.cache)), command.out)
    print(f"{command.out}: {rows} responses, {command.out.stat().st_size:,} bytes")
    return 0
