"""Reading and writing ``metrics.json``: what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tdistill.errors import DataError
from tdistill.report.result import read_result, result_of, write_result


@pytest.fixture
def metrics() -> dict[str, Any]:
    """A made-up result, as plain values."""
    path = Path(__file__).parent / "metrics_example.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("format", 1, "an object of format 3, found 1"),
        ("scores", 3, r"@ \$\.scores"),
        ("scores.1", [], r"@ \$\.scores\[1\]"),
        ("scores.0.model", 3, r"expected text, found 3 @ \$\.scores\[0\]\.model"),
        ("scores.0.metrics.rouge_l", 30.0, r"\$\.scores\[0\]\.metrics\['rouge_l'\]"),
        ("scores.0.metrics.rouge_l.mean", "30", r'expected a number, found "30" @ .*rouge_l.*mean'),
        ("scores.0.metrics.rouge_l.mean", float("nan"), r"expected a number, found NaN @ .*mean"),
        ("scores.0.metrics.rouge_l.low", 99.0, r"low <= high, found 99.0 and 45.5 @ .*rouge_l"),
        ("parameters.teacher", "64M", r"expected a whole number.* @ \$\.parameters\['teacher'\]"),
        ("cache.bounds.0.kappa", "large", r"@ \$\.cache\.bounds\[0\]\.kappa"),
        ("curves.sft.mean.step.0", "x", r"@ \$\.curves\['sft'\]\.mean\['step'\]\[0\]"),
        ("samples.0.responses.kd", None, r"expected text, found null @ \$\.samples\[0\]"),
        ("reward_traces.0.tokens", ["a"], r"as many rewards and values as tokens.*traces\[0\]"),
        ("reward_traces.0.value.1", "b", r"@ \$\.reward_traces\[0\]\.value\[1\]"),
    ],
)
def test_a_malformed_part_is_named(
    metrics: dict[str, Any], path: str, value: object, text: str
) -> None:
    *parents, last = path.split(".")
    part: Any = metrics
    for key in parents:
        part = part[int(key) if isinstance(part, list) else key]
    part[int(last) if isinstance(part, list) else last] = value
    with pytest.raises(DataError, match=rf"metrics.json: expected .*{text}|{text}"):
        result_of(metrics)


@pytest.mark.parametrize("part", ["created", "scores", "differences", "cache"])
def test_a_missing_part_is_named(metrics: dict[str, Any], part: str) -> None:
    del metrics[part]
    with pytest.raises(DataError, match=rf"expected it, found nothing @ \$\.{part}"):
        result_of(metrics)


def test_something_else_than_an_object_is_refused() -> None:
    with pytest.raises(DataError, match="expected an object of format 3, found list"):
        result_of([])


def test_what_is_written_is_read_again(metrics: dict[str, Any], tmp_path: Path) -> None:
    result, path = result_of(metrics), tmp_path / "metrics.json"
    write_result(result, path)
    assert read_result(path) == result
    assert json.loads(path.read_text()) == metrics
    path.write_text(path.read_text()[:500])
    with pytest.raises(DataError, match=r"metrics.json: expected a metrics.json, found"):
        read_result(path)
