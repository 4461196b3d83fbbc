"""Caches of formats 1 and 2, which are no longer written, made from present ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row, row_key
from tdistill.teacher.cache import Cache
from tdistill.teacher.manifest import MANIFEST, Manifest, file_sha256


def make_older(folder: Path, version: int = 2) -> Cache:
    """Rewrite a cache in an older format, log-probabilities rounded to float16."""
    cache = Cache(folder)
    listed = []
    for shard in cache.manifest.shards:
        rows = cache.rows(shard=shard.name)
        sources = [_source(cache, shard.name, i) for i in range(len(rows))]
        wide = cache.manifest.identity.vocabulary_size > 1 << 16
        batch = plain_batch(rows, [cache.evidence([row]) for row in rows], sources, wide=wide)
        path = folder / shard.name
        write_batch(path, batch)
        listed.append(replace(shard, bytes=path.stat().st_size, sha256=file_sha256(path)))
    Manifest(cache.manifest.identity, tuple(listed), version).write(folder)
    if version == 1:
        content = json.loads((folder / MANIFEST).read_text())
        del content["identity"]["tail_samples"]
        for entry in content["shards"]:
            del entry["tail_tokens"]
        (folder / MANIFEST).write_text(json.dumps(content, indent=1))
    return Cache(folder)


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """A file with one batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as out:
        out.write_batch(batch)
    path.write_bytes(sink.getvalue().to_pybytes())


def read_batch(path: Path) -> pa.RecordBatch:
    """The batch of a file, not mapped, so that the file can be replaced."""
    with pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_file(file).get_batch(0)


def plain_batch(
    rows: list[Row], evidence: list[Evidence], sources: list[str], *, wide: bool = False
) -> pa.RecordBatch:
    """The columns of format 2."""
    token = pa.uint32() if wide else pa.uint16()

    def lists(kind: pa.DataType, values: Iterable[np.ndarray]) -> pa.ListArray:
        arrays = [np.asarray(v) for v in values]
        offsets = np.cumsum([0, *(len(a) for a in arrays)], dtype=np.int32)
        flat = np.concatenate(arrays).astype(kind.to_pandas_dtype())
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, type=kind))

    columns = {
        "key": pa.array([row_key(row) for row in rows], type=pa.binary(16)),
        "source": pa.array(sources, type=pa.string()),
        "ended": pa.array([row.ended for row in rows], type=pa.bool_()),
        "prompt_ids": lists(token, (np.asarray(row.prompt_ids) for row in rows)),
        "response_ids": lists(token, (np.asarray(row.response_ids) for row in rows)),
        "log_normaliser": lists(pa.float32(), (e.log_normaliser.numpy() for e in evidence)),
        "action_log_prob": lists(pa.float16(), (e.action_log_prob.numpy() for e in evidence)),
        "set_sizes": lists(pa.int32(), (e.sets.sizes.numpy() for e in evidence)),
        "set_ids": lists(token, (e.sets.ids.numpy() for e in evidence)),
        "set_log_probs": lists(pa.float16(), (e.sets.log_probs.numpy() for e in evidence)),
    }
    tails = [e.tail for e in evidence if e.tail is not None]
    if tails:
        columns["tail_sizes"] = lists(pa.uint8(), (t.sizes.numpy() for t in tails))
        columns["tail_ids"] = lists(token, (t.ids.numpy() for t in tails))
        columns["tail_log_probs"] = lists(pa.float16(), (t.log_probs.numpy() for t in tails))
        columns["tail_counts"] = lists(pa.uint8(), (t.counts.numpy() for t in tails))
    return pa.record_batch(columns)


def _source(cache: Cache, shard: str, i: int) -> str:
    return read_batch(cache.folder / shard).column("source")[i].as_py()
