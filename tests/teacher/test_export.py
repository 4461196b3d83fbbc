"""A cache as Parquet: what others read is what the cache gives."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tdistill import cli
from tdistill.teacher.cache.export import write_parquet
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.config import CaptureConfig
from teaching import CAPTURE, IDENTITY, roll

TAILS = CaptureConfig(captured_top_p=0.7, max_set_size=None, tail_samples=4)


def check_row(found: Any, cache: Cache, i: int) -> None:
    """One row as somebody else's library gives it, against the cache."""
    row = cache.rows()[i]
    source = [source for shard in cache.shards() for source in shard.sources()][i]
    assert found["teacher"] == cache.manifest.identity.teacher_fingerprint
    assert tuple(found["prompt_ids"]) == row.prompt_ids
    assert tuple(found["response_ids"]) == row.response_ids
    assert (found["ended"], found["source"]) == (row.ended, source)
    evidence = cache.evidence([row])
    for name in ("log_normaliser", "action_log_prob"):
        assert np.array_equal(np.float32(found[name]), getattr(evidence, name).numpy())
    kinds: dict[str, Any] = {"set": evidence.sets}
    if evidence.tail is not None:
        kinds["tail"] = evidence.tail
    for kind, lists in kinds.items():
        for name in ("ids", "log_probs", "counts") if kind == "tail" else ("ids", "log_probs"):
            steps = found[f"{kind}_{name}"]
            assert [len(step) for step in steps] == lists.sizes.tolist()
            flat = np.concatenate([np.asarray(step) for step in steps])
            assert np.array_equal(flat.astype(np.float64), getattr(lists, name).double().numpy())


@pytest.mark.parametrize("capture", [CAPTURE, TAILS])
def test_others_read_what_the_cache_gives(capture: CaptureConfig, tmp_path: Path):
    # A row that was sampled twice is found once: its first place stands for both.
    cache = roll(tmp_path / "cache", sampling_top_p=0.7, capture=capture, seed=3)
    path = tmp_path / "deep/er/cache.parquet"
    assert write_parquet(cache, path) == len(cache) == 15
    table = pd.read_parquet(path)
    loaded: Any = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "datasets")
    )
    assert len(table) == len(loaded) == 15
    for i in range(15):
        check_row(table.iloc[i], cache, i)
        check_row(loaded[i], cache, i)
    metadata = pq.read_schema(path).metadata[b"tdistill"]
    assert json.loads(metadata) == asdict(cache.manifest.identity)
    assert pq.ParquetFile(path).num_row_groups == len(cache.manifest.shards)
    assert [p.name for p in path.parent.iterdir()] == ["cache.parquet"]


def test_an_empty_cache_gives_an_empty_table(tmp_path: Path):
    with CacheWriter(tmp_path / "cache", IDENTITY):
        pass
    assert write_parquet(Cache(tmp_path / "cache"), tmp_path / "a.parquet") == 0
    assert list(pd.read_parquet(tmp_path / "a.parquet").columns)[:2] == [
        "prompt_ids",
        "response_ids",
    ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    roll(tmp_path / "cache")
    out = tmp_path / "cache.parquet"
    assert cli.main(["export-cache", str(tmp_path / "cache"), str(out)]) == 0
    assert f"{out}: 15 responses" in capsys.readouterr().out
    assert len(pd.read_parquet(out)) == 15
    assert cli.main(["export-cache", str(tmp_path / "none"), str(out)]) == 2
    assert "expected a teacher cache" in capsys.readouterr().err
