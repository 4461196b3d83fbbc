"""What ``make gpu`` runs, on the CPU in its short form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import gpu


def run(folder: Path, *words: str) -> dict:
    out = folder / "gpu.json"
    status = gpu.main(["--short", "--out", str(out), "--work", str(folder / "work"), *words])
    found = json.loads(out.read_text())
    assert found["short"] and found["machine"]["torch"]
    assert status == (1 if any("failed" in part for part in found["parts"].values()) else 0)
    return found["parts"]


def test_its_parts_that_need_no_other_process(tmp_path: Path):
    parts = run(tmp_path, "--only", "core", "accuracy", "losses", "waits")
    assert list(parts) == ["core", "accuracy", "losses", "waits"]
    assert parts["core"]["largest_difference"] == dict.fromkeys(
        ("segment_logsumexp", "segment_cumsum", "project"), 0.0
    )
    errors = parts["accuracy"]["largest_error_nats"]
    assert 0 < errors["float32"]["scores, kernels"] < 1e-4 < errors["bfloat16"]["log-normaliser"]
    assert set(parts["losses"]["float32"]) >= {"on the set, gathered", "dense, full logits"}
    assert 0 < parts["waits"]["waits"] == sum(parts["waits"]["places"].values()) < 5


def test_a_part_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(setting: gpu.Setting) -> dict:
        raise RuntimeError("no numbers")

    monkeypatch.setitem(gpu.PARTS, "losses", broken)
    parts = run(tmp_path, "--only", "losses", "core")
    assert parts["losses"] == {"failed": "no numbers"}
    assert "compared" in parts["core"]


@pytest.mark.slow
def test_all_of_it(tmp_path: Path):
    parts = run(tmp_path)
    assert not [part for part in parts.values() if "failed" in part]
    assert parts["rollouts"]["tokens_per_second"]["tdistill, with capture"]["value"] > 0
    assert {"kd", "bellman_distill, vocabulary"} <= set(parts["steps"])
    assert parts["tests"] == {"run": False}
