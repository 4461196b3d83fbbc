"""Shards of formats 1 and 2, which are read and no longer written: a column for every number.

Log-probabilities are float16 and normalisers float32, as they were captured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from tdistill.evidence.rows import Row

_LISTS = (
    "response_ids",
    "set_sizes",
    "set_ids",
    "set_log_probs",
    "log_normaliser",
    "action_log_prob",
)
_TAIL = ("tail_sizes", "tail_ids", "tail_log_probs", "tail_counts")  # where tails were sampled


class PlainShard:
    """An open shard of format 1 or 2."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._lists = [*_LISTS, *(name for name in _TAIL if name in batch.schema.names)]

    def addresses(self) -> list[bytes]:
        """The stored addresses."""
        return self._batch.column("key").to_pylist()

    def rows(self) -> list[tuple[Row, str]]:
        """Rows and their sources."""
        names = ("prompt_ids", "response_ids", "ended", "source")
        columns = [self._batch.column(name).to_pylist() for name in names]
        return [
            (Row(tuple(prompt), tuple(response), ended), source)
            for prompt, response, ended, source in zip(*columns, strict=True)
        ]

    def columns(self) -> dict[str, Any]:
        """The numbers of all rows as arrays; see :meth:`Cache.shard_columns`."""
        columns = {name: self._batch.column(name).values.to_numpy() for name in self._lists}
        columns["lengths"] = np.diff(self._batch.column("response_ids").offsets.to_numpy())
        columns["ended"] = np.asarray(self._batch.column("ended").to_pylist(), dtype=bool)
        return columns

    def row_columns(self, i: int) -> dict[str, np.ndarray]:
        """The numbers of one row."""
        found = {}
        for name in self._lists:
            array = self._batch.column(name)
            start, stop = array.offsets[i].as_py(), array.offsets[i + 1].as_py()
            found[name] = array.values.slice(start, stop - start).to_numpy()
        return found


def is_plain(columns: dict[str, Any]) -> bool:
    """Whether the columns of a shard are of format 1 or 2."""
    return columns["set_log_probs"].dtype == np.float16
