from __future__ import annotations

import json

import pytest
from benchmarks.speed.document import BEGIN, END, put_in, table
from benchmarks.speed.protocol import ROOT

PERFORMANCE = ROOT / "docs" / "performance.md"
FOUND = {
    "entries": [
        {
            "name": "a",
            "words": "first",
            "value": 1234.5,
            "spread": [1200.0, 1300.0],
            "bar": 1e6,
            "comparison": ">=",
            "unit": "steps/s",
            "met": False,
            "reason": "a slow disk",
        },
        {
            "name": "b",
            "words": "second",
            "value": None,
            "spread": None,
            "bar": 0.25,
            "comparison": "<=",
            "unit": "s",
            "met": False,
        },
    ]
}


def test_a_line_for_every_bar_and_a_reason_for_what_is_missed():
    lines = table(FOUND).splitlines()
    assert lines[2] == "| first | 1,234 | 1,200 to 1,300 | >= 1,000,000 steps/s | no |"
    assert lines[3] == "| second | - | - | <= 0.25 s | no |"
    assert lines[-1] == "- Missed: first. a slow disk"


def test_the_rest_of_a_document_stays():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = put_in(text, FOUND)
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert put_in(once, FOUND) == once
    with pytest.raises(ValueError, match="expected the lines"):
        put_in("nothing", FOUND)


def test_the_document_has_the_committed_results():
    found = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    text = PERFORMANCE.read_text(encoding="utf-8")
    assert put_in(text, found) == text
    for figure in ("headline", "vocabulary", "sharing", "loss_alone", "rollouts", "cache", "parts"):
        assert f"figures/speed_{figure}.png" in text
        assert (ROOT / "docs" / "figures" / f"speed_{figure}.png").exists()
