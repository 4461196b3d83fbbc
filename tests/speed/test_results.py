from __future__ import annotations

import copy
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.speed.bars import BARS, NOT_MEASURED, Report, problems, results
from benchmarks.speed.measure import Spread
from benchmarks.speed.page import write_page
from benchmarks.speed.protocol import ROOT

COMMITTED = ROOT / "benchmarks" / "results.json"
ISSUE = {
    "training_step.against_gkd.bellman_distill": (">=", 3.5),
    "training_step.against_gkd.kd": (">=", 3.5),
    "training_step.against_on_policy": (">=", 10.0),
    "training_step.memory": ("<=", 0.25),
    "scaling.vocabulary": ("<=", 0.10),
    "scaling.prefix_sharing": (">=", 2.0),
    "loss_alone.full": (">=", 50.0),
    "loss_alone.chunked": (">=", 20.0),
    "rollouts.against_output_logits": (">=", 1.5),
    "rollouts.capture_cost": ("<=", 0.10),
    "cache.member_bytes": ("<=", 3.2),
    "cache.step_bytes": ("<=", 8.0),
    "cache.against_distillkit.recommended": ("<=", 0.6),
    "cache.against_distillkit.budget": ("<=", 0.6),
    "cache.decode": (">=", 1e6),
    "cache.error": ("<=", 0.004),
    "limit.blocks": (">=", 0.7),
    "selection.against_sort": ("<=", 0.2),
    "start_up.help": ("<=", 1.0),
    "start_up.import": ("<=", 0.3),
    "start_up.torch": ("<=", 0.0),
}


def spread(value: float) -> dict[str, Any]:
    return Spread(value, value - 0.1, value + 0.1).json()


def example() -> dict[str, Any]:
    """Results of which one bar is missed and one is not measured."""
    report = Report(details=DETAILS["training_step"])
    for bar in BARS:
        report.add(bar.name, Spread(bar.bar, bar.bar, bar.bar), f"sizes of {bar.name}")
    report.add("start_up.help", Spread(2.0, 1.5, 2.5), "a process each time")
    report.leave_out("scaling.prefix_sharing", "not run: no such option")
    rest = {n: {"figures": {}, "details": d} for n, d in DETAILS.items() if n != "training_step"}
    raw = {"training_step": {"figures": report.figures, "details": report.details}, **rest}
    why = {"start_up.help": "a slow\n disk", "scaling.prefix_sharing": "soon", "limit.blocks": "-"}
    return results(raw, why, form="tiny")


DETAILS: dict[str, dict[str, Any]] = {
    "training_step": {
        "methods": [
            {
                "method": name,
                "seconds": spread(2.0),
                "tokens_per_second": spread(70.0),
                "over_bare_mib": 900.0,
            }
            for name in ("bellman_distill", "kd", "gkd", "on_policy")
        ],
    },
    "scaling": {
        "vocabulary": [
            {"vocabulary": v, "seconds": spread(2.0), "without_optimiser": spread(1.0)}
            for v in (32_768, 65_536)
        ],
        "tokens": [
            {"tokens": t, "seconds": spread(2.0), "without_optimiser": spread(1.0)}
            for t in (512, 1024)
        ],
        "responses": [
            {"n": 1, "separate_rows": spread(1.0)},
            {"n": 8, "separate_rows": spread(8.0), "shared_prefix": spread(3.0)},
        ],
    },
    "loss_alone": {"seconds": {"set": spread(0.2), "full": spread(19.0)}},
    "rollouts": {"tokens_per_second": {"tdistill, with capture": spread(90.0)}},
    "cache_bytes": {
        "curve": [
            {"p": p, "max_set_size": cap, "bytes_per_step": 90 * p, "mass": p, "largest_error": 0.0}
            for p in (0.5, 0.9)
            for cap in (64, None)
        ],
        "peers": [{"name": "another & its <layout>", "bytes_per_step": 300.0, "mass": 0.97}],
    },
    "limit": {"profile": [{"part": "backward", "seconds": 1.0, "share": 0.5}]},
}


def test_the_bars_are_those_of_the_issue():
    assert {bar.name: (bar.comparison, bar.bar) for bar in BARS} == ISSUE


def test_the_committed_results_are_whole():
    found = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert problems(found) == []
    assert {e["name"]: (e["comparison"], e["bar"]) for e in found["entries"]} == ISSUE


def test_reasons_are_of_bars():
    reasons = yaml.safe_load((ROOT / "benchmarks" / "reasons.yaml").read_text()) or {}
    assert set(reasons) <= set(ISSUE)
    assert all(isinstance(text, str) and text.strip() for text in reasons.values())


def test_reasons_show_only_where_a_bar_is_missed():
    found = example()
    assert problems(found) == []
    entries = {entry["name"]: entry for entry in found["entries"]}
    assert entries["start_up.help"]["reason"] == "a slow disk"
    assert entries["scaling.prefix_sharing"]["met"] is False
    assert "reason" not in entries["limit.blocks"]


def test_what_was_not_run_is_said():
    found = results({}, {}, form="tiny")
    assert {entry["run"] for entry in found["entries"]} == {NOT_MEASURED}
    assert not any(entry["met"] for entry in found["entries"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: f.pop("machine"), "no machine"),
        (lambda f: f["entries"].pop(0), "training_step.against_gkd.bellman_distill: no entry"),
        (lambda f: f["entries"][0].update(value=1.0), "met does not agree"),
        (lambda f: f["entries"][0].update(bar=1.0), "another bar"),
        (lambda f: f["entries"][0].update(spread=[9.0, 9.5]), "outside its spread"),
        (lambda f: f["entries"][0].update(run=""), "does not say what was run"),
        (lambda f: f["entries"][0].update(name="speed.of.light"), "no such bar"),
        (lambda f: f["entries"][18].pop("reason"), "missed, without a reason"),
    ],
)
def test_each_problem_is_found(change: Any, problem: str):
    found = copy.deepcopy(example())
    change(found)
    assert any(problem in text for text in problems(found))


def test_the_page_has_every_bar_and_figure_and_needs_nothing_else(tmp_path: Path):
    found = example()
    write_page(found, tmp_path / "results.html", tmp_path / "figures")
    page = (tmp_path / "results.html").read_text(encoding="utf-8")
    for entry in found["entries"]:
        assert escape(entry["words"]) in page
    assert page.count("<svg") == 7
    assert "<b>Missed because</b> a slow disk" in page
    assert "another &amp; its &lt;layout&gt;" in page
    assert not re.search(r'(src|href)="https?:', page)
    drawn = {file.name for file in (tmp_path / "figures").iterdir()}
    assert "speed_headline.png" in drawn
    assert len(drawn) == 7


def test_figures_of_what_was_left_out_are_left_out(tmp_path: Path):
    found = {**example(), "details": {}}
    write_page(found, tmp_path / "results.html", tmp_path / "figures")
    assert "<svg" not in (tmp_path / "results.html").read_text(encoding="utf-8")
