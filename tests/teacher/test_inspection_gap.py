"""What inspection says of a tolerated gap and of sampled tails, and the damage it finds in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tdistill import cli
from tdistill.errors import InvalidValueError
from tdistill.teacher.adaptive import choose_top_p
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.inspection import inspect_cache, inspection_text
from teaching import roll

TAILS = CaptureConfig(captured_top_p=0.7, max_set_size=None, tail_samples=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    found = roll(tmp_path_factory.mktemp("cache"), sampling_top_p=0.7, capture=TAILS, seed=3)
    keys = {key for shard in found.shards() for key in shard.addresses()}
    assert len(keys) == len(found)  # of equal responses only the first is found
    return found


def test_a_gap_adds_what_it_asks_for(cache: Cache, capsys: pytest.CaptureFixture[str]):
    words = ["inspect", str(cache.folder), "--gap", "9", "--discount", "0.95"]
    assert cli.main([*words, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert [chosen["rule"] for chosen in numbers["chosen"]] == ["global", "per-state"]
    for chosen in numbers["chosen"]:
        own = choose_top_p(cache, 9.0, discount=0.95, rule=chosen["rule"])
        assert chosen["mean_size"] == own.mean_size
        assert chosen["bound"] == own.bound <= 9.0
    assert "chosen" not in inspect_cache(cache)
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert said.count("a gap of 9 nats at discount 0.95") == 2
    assert f"p = {numbers['chosen'][0]['set_top_p']:g}, mean size" in said
    assert f"min_gain = {numbers['chosen'][1]['min_gain']:g}, mean size" in said


def test_a_gap_out_of_reach_is_refused(cache: Cache, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(InvalidValueError, match="tolerated_gap: expected at least"):
        inspect_cache(cache, gap=1e-6)
    assert cli.main(["inspect", str(cache.folder), "--gap", "1e-6"]) == 2
    assert "tolerate more" in capsys.readouterr().err


def test_tails_are_counted(cache: Cache, tmp_path: Path):
    numbers = inspect_cache(cache)
    tail = cache.evidence(cache.rows()).tail
    assert tail is not None
    assert numbers["tail_samples"] == 4
    assert numbers["tail_tokens_per_step"] == pytest.approx(len(tail.ids) / numbers["steps"])
    assert "sampled tail   4 draws a step" in inspection_text(numbers)
    plain = roll(tmp_path, sampling_top_p=0.7, capture=CaptureConfig(0.7, None), seed=3)
    without = inspect_cache(plain)
    assert (without["tail_samples"], without["tail_tokens_per_step"]) == (0, 0.0)
    added = numbers["bytes"] - without["bytes"]
    # A size a step; 6 + 12 + 4 bits a tail token; streams end with whole bytes.
    least = numbers["steps"] + (6 + 12 + 4) / 8 * len(tail.ids)
    assert least <= added < least + 6 * numbers["rows"] + 128 * len(plain.manifest.shards)
