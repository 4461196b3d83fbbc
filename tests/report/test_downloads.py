"""The numbers of the page as CSV: every curve in columns, long ones in means over their steps."""

from __future__ import annotations

import csv
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

from tdistill.report.downloads import downloads
from tdistill.report.result import result_of

EXAMPLE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "metrics_example.json").read_text(encoding="utf-8")
)


def saved(plain: dict[str, Any], name: str) -> list[dict[str, str]]:
    (file,) = (file for file in downloads(result_of(plain)) if file.name == name)
    text = b64decode(file.address.partition("base64,")[2]).decode()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == file.rows
    return rows


def test_every_step_of_every_curve_is_a_row():
    rows = saved(EXAMPLE, "curves.csv")
    expected = {x: curve["mean"]["step"] for x, curve in EXAMPLE["curves"].items()}
    assert {x: [float(r["step"]) for r in rows if r["model"] == x] for x in expected} == expected
    third = next(r for r in rows if (r["model"], float(r["step"])) == ("bellman_distill", 3))
    columns = EXAMPLE["curves"]["bellman_distill"]["mean"]
    assert {name: float(third[name]) for name in columns} == {x: y[2] for x, y in columns.items()}
    first = next(r for r in rows if r["model"] == "sft")
    assert first["value"] == ""  # which sft did not log


def test_a_long_curve_is_saved_in_means_and_what_was_not_logged_is_none_of_them():
    columns = {"step": list(range(1000)), "loss": [1.0, None, 3.0] * 333 + [None]}
    plain = EXAMPLE | {"curves": {"kd": {"mean": columns, "seeds": [columns]}}}
    rows = saved(plain, "curves.csv")
    assert len(rows) == 334
    assert {r["loss"] for r in rows[:-1]} == {"2.0"} and rows[-1]["loss"] == ""
    assert float(rows[0]["step"]) == 1.0


def test_a_run_without_curves_has_no_file_of_them():
    names = {file.name for file in downloads(result_of(EXAMPLE | {"curves": {}}))}
    assert {"scores.csv", "differences.csv"} <= names and "curves.csv" not in names
