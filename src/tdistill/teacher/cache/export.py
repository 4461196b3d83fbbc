"""A cache as one Parquet file, for pandas, DuckDB and `datasets`."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from tdistill.files import replacing
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.row_decoder import ShardReader

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetWriter

_TOKENS, _REALS = pa.list_(pa.int32()), pa.list_(pa.float32())
_COLUMNS = {
    "prompt_ids": _TOKENS,
    "response_ids": _TOKENS,
    "ended": pa.bool_(),
    "source": pa.string(),
    "teacher": pa.string(),
    "log_normaliser": _REALS,
    "action_log_prob": _REALS,
    "set_ids": pa.list_(_TOKENS),
    "set_log_probs": pa.list_(_REALS),
}
_TAIL_COLUMNS = {
    "tail_ids": pa.list_(_TOKENS),
    "tail_log_probs": pa.list_(_REALS),
    "tail_counts": pa.list_(_TOKENS),
}


def write_parquet(cache: Cache, path: Path) -> int:
    """Write every row of a cache, a shard a row group; returns the rows written.

    A row is a response: ``prompt_ids`` and ``response_ids``; ``ended``; ``source``; ``teacher``, a
    fingerprint; for each step ``log_normaliser`` and ``action_log_prob``, and the lists ``set_ids``
    and ``set_log_probs``; where tails were sampled also ``tail_ids``, ``tail_log_probs`` and
    ``tail_counts``.
    Log-probabilities are in nats, as the cache gives them; log-normalisers that it lacks are not a
    number. The cache's identity is in the file's
    metadata, under ``tdistill``.

    Args:
        cache: the open cache.
        path: the file to write; replaced if it exists.
    """
    from pyarrow.parquet import ParquetWriter

    identity = {"tdistill": json.dumps(asdict(cache.manifest.identity))}
    tails = _TAIL_COLUMNS if cache.manifest.identity.tail_samples > 0 else {}
    schema = pa.schema(_COLUMNS | tails).with_metadata(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, ParquetWriter(partial, schema, compression="zstd") as out:
        return sum(_write(shard, out) for shard in cache.shards())


def _write(shard: ShardReader, out: ParquetWriter) -> int:
    rows = shard.rows()
    evidence = shard.evidence()
    sets, tail = evidence.sets, evidence.tail
    ends = torch.tensor([0, *accumulate(len(row.response_ids) for row in rows)])
    columns = {
        "prompt_ids": [row.prompt_ids for row in rows],
        "response_ids": [row.response_ids for row in rows],
        "ended": [row.ended for row in rows],
        "source": shard.sources(),
        "teacher": shard.teachers(),
        "log_normaliser": _lists(ends, _array(evidence.log_normaliser)),
        "action_log_prob": _lists(ends, _array(evidence.action_log_prob)),
        "set_ids": _lists(ends, _lists(sets.offsets, _array(sets.ids))),
        "set_log_probs": _lists(ends, _lists(sets.offsets, _array(sets.log_probs))),
    }
    if tail is not None:
        for name, values in zip(
            _TAIL_COLUMNS, (tail.ids, tail.log_probs, tail.counts), strict=True
        ):
            columns[name] = _lists(ends, _lists(tail.offsets, _array(values)))
    out.write_table(pa.table(columns, schema=out.schema), row_group_size=len(rows))
    return len(rows)


def _lists(offsets: torch.Tensor, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.to(torch.int32).numpy()), values)


def _array(values: torch.Tensor) -> pa.Array:
    return pa.array((values if values.is_floating_point() else values.to(torch.int32)).numpy())
