"""The cache against standard containers: bytes, steps decoded a second, seconds to open.

    python -m benchmarks.cache_formats CACHE [CACHE ...]

Each cache's rows are written again: as the cache does it, as Parquet and as Arrow IPC, the latter
two with the same rounded levels, split so that compressors do best: the level of a set's likeliest
member, and for the others how many levels they are below the one before. Then responses are read
in batches of 32 at random, over many shards, to the tensors that :meth:`Cache.evidence` gives; an
LRU keeps a tenth of the compressed groups decoded. All files are in the page cache; seconds are
those of one thread, so that other work on the machine does not count.

A cache over 49,152 tokens is also measured as one over 151,936: its ids spread over the larger
range in the same order, which keeps their frequencies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from benchmarks.cache_material import LARGEST, Material, material

from tdistill.core import TopPSets
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import row_key
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.rounding import NORMALISER_STEP, level_table, levels_of
from tdistill.teacher.cache.row_encoder import CachedResponse
from tdistill.teacher.cache.row_layout import taken_members
from tdistill.teacher.cache.writer import CacheWriter

BATCH = 32
ESCAPE = 255
LISTS = ("response_ids", "sizes", "first", "normaliser", "set_ids", "deltas", "excess", "outside")

Columns = dict[str, np.ndarray]
Place = tuple[int, int]


class Ours:
    """The cache as it is."""

    name = "tdistill"

    def write(self, made: Material, folder: Path) -> None:
        """One shard after the other."""
        with CacheWriter(folder, made.identity) as writer:
            for number, records in enumerate(made.shards):
                writer.write(f"copy-{number:05d}", records)

    def open(self, made: Material, folder: Path) -> Callable[[Sequence[int]], Evidence]:
        """Reads rows by their number in the material; checksums are compared once."""
        cache, rows = Cache(folder), [record.row for record in made.records]
        return lambda numbers: cache.evidence([rows[i] for i in numbers])


@dataclass(frozen=True)
class Container:
    """Parquet or Arrow IPC.

    Attributes:
        kind: ``parquet`` or ``arrow``.
        codec: of each page (Parquet) or buffer (Arrow).
        group: rows that are compressed, and so read, together.
    """

    kind: str
    codec: str | None
    group: int

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.kind}, {self.codec or 'no codec'}, {self.group} rows a group"

    def write(self, made: Material, folder: Path) -> None:
        """One file a shard."""
        for number, records in enumerate(made.shards):
            table = table_of(records, made.identity.vocabulary_size, self.kind, self.codec)
            path = str(folder / f"{number:05d}.{self.kind}")
            if self.kind == "parquet":
                _write_parquet(table, path, self.codec, self.group)
            else:
                options = pa.ipc.IpcWriteOptions(compression=self.codec)
                with pa.ipc.new_file(path, table.schema, options=options) as out:
                    out.write_table(table.combine_chunks(), max_chunksize=self.group)

    def open(self, made: Material, folder: Path) -> Callable[[Sequence[int]], Evidence]:
        """Reads rows by their number in the material, found by key as in a cache."""
        files = [self._file(path) for path in sorted(folder.iterdir())]
        keys = [key for file in files for key in _keys(file)]
        place = {key: divmod(i, made.shard) for i, key in enumerate(keys)}
        rows = [record.row for record in made.records]
        groups = -(-made.shard // self.group) * len(files)
        kept = None if self.codec is None else max(1, groups // 10)

        @lru_cache(kept)
        def group(file: int, number: int) -> Columns:
            return _columns(_batch(files[file], number))

        def read(numbers: Sequence[int]) -> Evidence:
            places = [place[row_key(rows[i])] for i in numbers]
            found = [(group(f, i // self.group), i % self.group) for f, i in places]
            return decode(found)

        return read

    def _file(self, path: Path) -> Any:
        source = pa.memory_map(str(path))
        return pq.ParquetFile(source) if self.kind == "parquet" else pa.ipc.open_file(source)


def _write_parquet(table: pa.Table, path: str, codec: str | None, group: int) -> None:
    """The encoding of each column that takes the fewest bytes: dictionary for what repeats."""
    dictionary = ["source", "set_ids.list.element", "deltas.list.element"]
    split = {
        f"{n}.list.element": "BYTE_STREAM_SPLIT" for n in LISTS if n not in ("set_ids", "deltas")
    }
    options: Any = {"use_dictionary": dictionary, "column_encoding": split}
    pq.write_table(table, path, row_group_size=group, compression=codec or "none", **options)


def _keys(file: Any) -> list[bytes]:
    if isinstance(file, pq.ParquetFile):
        return file.read(["key"], use_threads=False).column("key").to_pylist()
    batches = (file.get_batch(i) for i in range(file.num_record_batches))
    return [key for batch in batches for key in batch.column("key").to_pylist()]


def _batch(file: Any, number: int) -> pa.RecordBatch:
    if isinstance(file, pq.ParquetFile):
        table = file.read_row_group(number, [*LISTS, "table"], use_threads=False)
        return table.combine_chunks().to_batches()[0]
    return file.get_batch(number)


def _columns(batch: pa.RecordBatch) -> Columns:
    """Values and offsets of each list column."""
    found: Columns = {}
    for name in LISTS:
        column = batch.column(name)
        values = column.values
        if isinstance(values, pa.DictionaryArray):
            found["table"], values = values.dictionary.to_numpy(), values.indices
        found[name] = values.to_numpy()
        found[f"{name}_at"] = column.offsets.to_numpy()
    return found


def table_of(
    records: Sequence[CachedResponse], vocabulary: int, kind: str, codec: str | None
) -> pa.Table:
    """The rows as list columns of the smallest integers that hold them."""
    ids = pa.uint16() if vocabulary <= 1 << 16 else pa.int32()
    types = dict.fromkeys(LISTS, pa.uint16()) | {"response_ids": ids, "set_ids": ids}
    types |= {"deltas": pa.uint8()}
    rows = [_split(record) for record in records]
    columns = {
        "key": pa.array([row_key(r.row) for r in records], pa.binary(16)),
        "source": pa.array([r.source for r in records]),
        "ended": pa.array([r.row.ended for r in records]),
        "prompt_ids": _lists([np.asarray(r.row.prompt_ids) for r in records], ids),
    }
    columns |= {name: _lists([row[name] for row in rows], types[name]) for name in LISTS}
    if kind == "arrow" and codec is None and vocabulary > 1 << 16:
        columns["set_ids"] = _with_dictionary(columns["set_ids"])
    return pa.table(columns)


def _lists(parts: Sequence[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    values = pa.array(np.concatenate(parts).astype(kind.to_pandas_dtype()))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _with_dictionary(column: pa.ListArray) -> pa.ListArray:
    encoded = column.values.dictionary_encode()
    indices = encoded.indices.cast(pa.uint16())
    values = pa.DictionaryArray.from_arrays(indices, encoded.dictionary)
    return pa.ListArray.from_arrays(column.offsets, values)


def _split(record: CachedResponse) -> Columns:
    sets, actions = record.evidence.sets, np.asarray(record.row.response_ids)
    levels, sizes = levels_of(sets.log_probs.numpy()), sets.sizes.numpy()
    starts = sets.offsets[:-1].numpy()
    deltas = np.diff(levels, prepend=0)
    deltas[starts] = 0
    step, _ = taken_members(actions, sizes, sets.ids.numpy())
    return {
        "response_ids": actions,
        "sizes": sizes,
        "first": levels[starts],
        "normaliser": np.rint(record.evidence.log_normaliser.numpy() / NORMALISER_STEP) + 2**15,
        "set_ids": sets.ids.numpy(),
        "deltas": np.minimum(deltas, ESCAPE),
        "excess": deltas[deltas >= ESCAPE] - ESCAPE,
        "outside": np.delete(levels_of(record.evidence.action_log_prob.numpy()), step),
    }


def decode(places: Sequence[tuple[Columns, int]]) -> Evidence:
    """The evidence of rows of any groups, laid end to end."""

    def whole(name: str) -> np.ndarray:
        at = f"{name}_at"
        return np.concatenate([group[name][group[at][i] : group[at][i + 1]] for group, i in places])

    sizes = whole("sizes").astype(np.int64)
    ends = np.cumsum(sizes)
    ids = whole("set_ids")
    if "table" in places[0][0]:
        ids = np.concatenate(
            [
                group["table"][
                    group["set_ids"][group["set_ids_at"][i] : group["set_ids_at"][i + 1]]
                ]
                for group, i in places
            ]
        )
    levels = _levels(whole("deltas"), whole("excess"), whole("first").astype(np.int32), ends, sizes)
    actions = whole("response_ids")
    step, member = taken_members(actions, sizes, ids)
    of_action = np.full(len(actions), -1, dtype=np.int32)
    of_action[step] = levels[member]
    of_action[of_action < 0] = whole("outside")
    table = level_table()
    normaliser = (whole("normaliser").astype(np.int32) - 2**15) * np.float32(NORMALISER_STEP)
    sets = TopPSets(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(table.take(levels)),
        torch.from_numpy(np.concatenate([[0], ends])),
    )
    return Evidence(sets, torch.from_numpy(normaliser), torch.from_numpy(table.take(of_action)))


def _levels(
    deltas: np.ndarray, excess: np.ndarray, first: np.ndarray, ends: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """One running sum over all rows: every first member takes back what came before it."""
    starts = ends - sizes
    deltas = deltas.astype(np.int32)
    deltas[deltas == ESCAPE] += excess
    last = first + np.add.reduceat(deltas, starts)
    deltas[starts] = np.diff(first, prepend=0)
    deltas[starts[1:]] -= (last - first)[:-1]
    return np.cumsum(deltas, out=deltas)


FORMATS = (
    Ours(),
    Container("parquet", "zstd", 256),
    Container("parquet", "zstd", 32),
    Container("parquet", "zstd", 1),
    Container("arrow", "zstd", 256),
    Container("arrow", "zstd", 32),
    Container("arrow", "zstd", 8),
    Container("arrow", "zstd", 1),
    Container("arrow", "lz4", 8),
    Container("arrow", "lz4", 1),
    Container("arrow", None, 256),
)


def measure(form: Ours | Container, made: Material, folder: Path, seconds: float) -> dict[str, Any]:
    """One format on one material: what is read must be what was written."""
    form.write(made, folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    started = time.process_time()
    read = form.open(made, folder)
    opened = time.process_time() - started
    check(read(range(BATCH)), made.records[:BATCH])
    draw = np.random.default_rng(0)
    rates, until = [], time.process_time() + seconds
    while time.process_time() < until or not rates:
        batches = [draw.integers(len(made.records), size=BATCH).tolist() for _ in range(4)]
        started = time.process_time()
        steps = sum(len(read(batch).sets) for batch in batches)
        rates.append(steps / (time.process_time() - started))
    return {
        "format": form.name,
        "bytes_per_step": size / made.steps,
        "bytes_per_member": size / made.members,
        "random_steps_per_second": statistics.median(rates),
        "open_seconds": opened,
    }


def check(found: Evidence, records: Sequence[CachedResponse]) -> None:
    for name, part in (
        ("ids", [r.evidence.sets.ids for r in records]),
        ("log_probs", [r.evidence.sets.log_probs for r in records]),
    ):
        assert torch.equal(getattr(found.sets, name), torch.cat(part)), name
    for name in ("log_normaliser", "action_log_prob"):
        expected = torch.cat([getattr(r.evidence, name) for r in records])
        assert torch.equal(getattr(found, name), expected), name


def main() -> None:
    """Measure, and print a table and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--copies", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names of formats")
    words = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    for folder in words.caches:
        size = Cache(folder).manifest.identity.vocabulary_size
        for vocabulary in [None] if size < 1 << 15 else [None, LARGEST]:
            forms = [form for form in FORMATS if any(only in form.name for only in words.only)]
            _report(material(folder, words.copies, vocabulary), forms, words.seconds)


def _report(made: Material, forms: Sequence[Ours | Container], seconds: float) -> None:
    print(
        f"{made.name}, V = {made.identity.vocabulary_size}: {len(made.records)} rows in "
        f"{len(made.shards)} shards, {made.steps} steps of {made.members / made.steps:.1f} members"
    )
    lines = []
    for form in forms:
        folder = Path(tempfile.mkdtemp())
        try:
            lines.append(measure(form, made, folder, seconds))
        finally:
            shutil.rmtree(folder)
        found = lines[-1]
        print(
            f"  {found['format']:<34} {found['bytes_per_step']:7.1f} bytes a step "
            f"({found['bytes_per_step'] / lines[0]['bytes_per_step']:.2f}), "
            f"{found['bytes_per_member']:.2f} a member, "
            f"{found['random_steps_per_second'] / 1e6:6.3f} M steps/s, "
            f"{found['open_seconds']:.2f} s to open",
            flush=True,
        )
    print(json.dumps({"cache": made.name, "formats": lines}))


if __name__ == "__main__":
    main()
