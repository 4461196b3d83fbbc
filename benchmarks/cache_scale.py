"""A cache of many steps: seconds to open, memory of a process, steps read a second, inspection.

    python benchmarks/cache_scale.py --steps 50000000 --folder DIR

The real writer writes synthetic answers of a teacher with 151,936 tokens: responses of 128 to 512
steps, 8 to each prompt, sets of 12 members on average (median 4, at most 256), tokens as frequent
as one over their rank. Evidence is drawn for 1,024 responses and used again with other prompts; a
row is encoded each time. Then each number is measured in a process of its own; an interrupted
command goes on. Memory is told apart: what is a process's own, and pages of the files, which all
processes share and the system takes back when it needs them. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdistill.core import TopPSets
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row
from tdistill.teacher.adaptive import choose_top_p
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.rounding import round_log_probs, round_normaliser
from tdistill.teacher.cache.row_encoder import CachedResponse
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.inspection import inspect_cache
from tdistill.training.sampling import uniform_order

VOCABULARY = 151_936
IDENTITY = CacheIdentity("synthetic", "0" * 16, "1" * 16, VOCABULARY, 0.9, 256, 0, None)
RESPONSES = 1024  # with evidence of their own
SHORTEST, LONGEST, PROMPT, SAMPLES = 128, 512, 64, 8
ROWS_OF_A_SHARD = 256
MEDIAN_SIZE, SPREAD = 4.0, 1.5  # of a log-normal distribution
BATCH, SECONDS = 32, 20.0


@dataclass(frozen=True)
class Memory:
    """Of this process, bytes.

    Attributes:
        own: that no file backs.
        files: pages of files that are mapped.
        peak: most of both at a time.
    """

    own: int
    files: int
    peak: int


def memory() -> Memory:
    """What the system says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if "kB" in line}
    return Memory(found["RssAnon"], found["RssFile"], found["VmHWM"])


def answers(count: int, seed: int = 0) -> list[tuple[tuple[int, ...], Evidence]]:
    """Responses with evidence, which no prompt has been given to."""
    random = np.random.default_rng(seed)
    return [_answer(random, int(random.integers(SHORTEST, LONGEST + 1))) for _ in range(count)]


def _answer(random: np.random.Generator, steps: int) -> tuple[tuple[int, ...], Evidence]:
    drawn = np.clip(random.lognormal(math.log(MEDIAN_SIZE), SPREAD, steps), 1, 256).astype(int)
    step = np.repeat(np.arange(steps), drawn)
    tokens = (VOCABULARY ** random.random(len(step))).astype(np.int64) - 1  # one over their rank
    found = np.unique(step * VOCABULARY + tokens)
    step, ids = found // VOCABULARY, found % VOCABULARY
    sizes = np.bincount(step)
    starts = sizes.cumsum() - sizes
    rank = np.arange(len(ids)) - np.repeat(starts, sizes)
    weight = (1.0 + rank) ** -1.5
    log_probs = np.log(0.9 * weight / np.repeat(np.add.reduceat(weight, starts), sizes))
    rounded = round_log_probs(torch.from_numpy(log_probs).float())
    chosen = torch.from_numpy(starts + (sizes * random.random(steps) ** 3).astype(int))
    sets = TopPSets(torch.from_numpy(ids), rounded, torch.from_numpy(np.append(starts, len(ids))))
    normaliser = round_normaliser(torch.from_numpy(20.0 + random.standard_normal(steps)))
    return tuple(sets.ids[chosen].tolist()), Evidence(sets, normaliser, rounded[chosen])


def responses(steps: int, made: list[tuple[tuple[int, ...], Evidence]]) -> Iterator[CachedResponse]:
    """Rows with at least so many steps in all, no two of them the same."""
    done = row = 0
    while done < steps:
        ids, evidence = made[row % len(made)]
        prompt = tuple((row // SAMPLES * 7919 + k * k) % VOCABULARY for k in range(PROMPT))
        whole = Row((row // SAMPLES % VOCABULARY, *prompt), ids, ended=row % 3 > 0)
        yield CachedResponse(whole, evidence, f"rollout:{row % SAMPLES}")
        done, row = done + len(ids), row + 1


def make(folder: Path, steps: int, *, rows_of_a_shard: int = ROWS_OF_A_SHARD) -> None:
    """Write the cache, or what is missing of it."""
    rows, number = responses(steps, answers(RESPONSES)), 0
    with CacheWriter(folder, IDENTITY) as writer:
        while shard := [row for _, row in zip(range(rows_of_a_shard), rows, strict=False)]:
            name = f"rollouts-synthetic-{number:05d}"
            if f"{name}.arrow" not in writer.manifest.by_name:
                writer.write(name, shard)
            number += 1


def opened(folder: Path) -> dict[str, Any]:
    """Seconds and memory of opening."""
    cache: list[Cache] = []
    found = _timed(lambda: cache.append(Cache(folder)))
    return found | {"index": cache[0].index_bytes / len(cache[0])}


def batches(folder: Path) -> dict[str, Any]:
    """Steps a second of random batches, rows decoded and their evidence found by address."""
    before, cache = memory(), Cache(folder)
    rows = cache.rows()
    order = uniform_order(len(rows), seed=0)(0)
    done, first, start = 0, 0, time.perf_counter()
    spent = time.process_time()
    while time.perf_counter() - start < SECONDS and first < len(order):
        taken = rows.take(order[first : first + BATCH].tolist())
        done += len(cache.evidence(taken).sets)
        first += BATCH
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    rates = {"steps_per_second": done / seconds, "steps_per_processor_second": done / spent}
    return {**rates, "batches": first // BATCH, **_more(before, memory())}


def inspected(folder: Path) -> dict[str, Any]:
    """Seconds and memory of `tdistill inspect`."""
    return _timed(lambda: inspect_cache(Cache(folder)))


def gap_chosen(folder: Path) -> dict[str, Any]:
    """Seconds and memory of what a ``tolerated_gap`` asks of the cache."""
    return _timed(lambda: choose_top_p(Cache(folder), 50.0, discount=0.99))


def walked(folder: Path) -> dict[str, Any]:
    """Seconds and memory of a walk over all rows."""
    return _timed(lambda: sum(len(row.response_ids) for row in Cache(folder).rows()))


def _timed(work: Callable[[], Any]) -> dict[str, Any]:
    before, start, spent = memory(), time.perf_counter(), time.process_time()
    work()
    seconds = {"seconds": time.perf_counter() - start, "processor": time.process_time() - spent}
    return {**seconds, **_more(before, memory())}


def _more(before: Memory, after: Memory) -> dict[str, float]:
    """MiB more than before, of each kind."""
    pairs = zip(asdict(before).items(), asdict(after).values(), strict=True)
    return {f"{name}_mib": (found - was) / 2**20 for (name, was), found in pairs}


MEASURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "first opening": opened,
    "opening": opened,
    "batches": batches,
    "walk": walked,
    "inspect": inspected,
    "tolerated gap": gap_chosen,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50_000_000)
    parser.add_argument("--measure", choices=MEASURES, help="one of them, in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure is not None:
        print(json.dumps(MEASURES[options.measure](options.folder)))
        return
    start = time.perf_counter()
    make(options.folder, options.steps)
    cache = Cache(options.folder).manifest
    members = sum(shard.members for shard in cache.shards)
    print(f"{cache.steps:,} steps in {cache.rows:,} rows, {len(cache.shards)} shards,", end=" ")
    print(f"{cache.bytes / 1e9:.2f} GB, {members / cache.steps:.1f} members a step,", end=" ")
    print(f"made in {time.perf_counter() - start:.0f} s", flush=True)
    for name in MEASURES:
        words = [sys.executable, __file__, "--folder", str(options.folder), "--measure", name]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        numbers = {key: f"{value:,.4g}" for key, value in json.loads(done.stdout).items()}
        print(
            f"{name:14}", "  ".join(f"{key} {value}" for key, value in numbers.items()), flush=True
        )


if __name__ == "__main__":
    main()
