"""The title of the page says what was won and what was lost, each by its paired interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tdistill.report.findings import caveat, summary
from tdistill.report.headline import headline
from tdistill.report.page import render
from tdistill.report.result import result_of

EXAMPLE = (Path(__file__).parent / "metrics_example.json").read_text(encoding="utf-8")


def verified(**intervals: tuple[float, float, float]) -> str:
    """The title where answers are verified; differences of ``MODEL__METRIC`` to the student."""
    plain: dict[str, Any] = json.loads(EXAMPLE.replace('"rouge_l"', '"verified"'))
    for name, (mean, low, high) in intervals.items():
        model, metric = name.split("__")
        for row in plain["differences"]:
            if (row["model"], row["less"]) == (model, "bellman_distill") and metric in row[
                "metrics"
            ]:
                row["metrics"][metric] = {"mean": mean, "low": low, "high": high, "seeds": []}
    return headline(result_of(plain))


def test_right_answers_come_first_and_what_they_cost_after():
    text = verified(
        start__verified=(-0.9, -1.0, -0.8),
        start__forward_kl=(-0.5, -0.6, -0.4),
        sft__verified=(-0.2, -0.3, -0.1),
        sft__forward_kl=(-0.1, -0.2, -0.05),
    )
    led, moved, *rest = text.split("; ")
    assert led.startswith("Bellman Distill raises Verified (greedy) of a 63.7M student of a 134.5M")
    assert moved == "forward KL rises from 2.31 to 1.12 nats a step"
    assert "better than SFT in Verified" in rest
    assert "worse than SFT in Forward KL" in rest


def test_what_is_not_told_apart_is_no_gain():
    text = verified(
        start__verified=(-0.1, -0.3, 0.1),
        start__forward_kl=(0.0, -0.1, 0.1),
        sft__verified=(0.0, -0.1, 0.1),
    )
    assert text.startswith("Verified (greedy): ")
    assert "not told apart" in text.split("; ")[1]
    assert "raises" not in text and "forward KL" not in text and "better" not in text


def test_right_answers_that_were_lost_are_told():
    text = verified(start__verified=(0.4, 0.3, 0.5), sft__verified=(0.2, 0.1, 0.3))
    assert text.startswith("Bellman Distill lowers Verified (greedy)")
    assert "better" not in text
    assert "worse than the start in Verified" in text and "worse than SFT in Verified" in text


def test_a_place_is_named_where_the_others_say_something_else():
    plain: dict[str, Any] = json.loads(EXAMPLE)
    for row in plain["differences"]:
        if (row["model"], row["decoding"]) == ("sft", "greedy"):
            row["metrics"]["rouge_l"] = {"mean": 0.1, "low": 0.05, "high": 0.2, "seeds": []}
    text = headline(result_of(plain))
    assert "better than SFT in Rouge-L (T = 1, nucleus)" in text
    assert "worse than SFT in Rouge-L (greedy)" in text


def test_without_a_forward_kl_the_divergence_that_is_known_is_named():
    plain: dict[str, Any] = json.loads(EXAMPLE.replace('"forward_kl', '"kl_with_rest'))
    for row in plain["imitation"]:
        row["metrics"]["forward_kl"] = None
    plain["absent"] = {"forward_kl": "a list has a part; evaluation.teacher: local"}
    result = result_of(plain)
    usual = headline(result_of(json.loads(EXAMPLE)))
    assert headline(result) == usual.replace("forward KL", "set-and-rest KL").replace(
        "Forward KL", "Set-and-rest KL"
    )
    assert "Set-and-rest KL to the teacher is 2.31" in " ".join(summary(result))
    assert caveat(result).endswith("since the teacher's weights were elsewhere: forward KL.")
    assert "elsewhere" not in caveat(result_of(json.loads(EXAMPLE)))
    page = render(result)
    assert "<dt>Forward KL</dt><dd>a list has a part; evaluation.teacher: local</dd>" in page
    assert "What was not measured" in page
