"""The table and the page of many objectives and seeds, on made-up numbers."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import re
from collections import Counter
from typing import Any

import pytest
from rich.console import Console
from test_report import Page

from made_up import made_up
from tdistill.report import score_table, summary
from tdistill.report.choice import MOST_AT_FIRST, choices, first_shown
from tdistill.report.curves import learning_curves
from tdistill.report.figures import interval_figures
from tdistill.report.page import render
from tdistill.report.result import result_of
from tdistill.report.tables import (
    difference_cell,
    score_cell,
    score_rows,
    table_columns,
    table_rows,
)

SMALL = {"cloning": 3, "temporal-difference": 2}


@pytest.fixture(scope="module")
def small() -> Any:
    return made_up(SMALL, steps=20)


def changed(plain: Any, model: str, metric: str, **bounds: float) -> Any:
    """The same with another difference to the baseline, on teacher responses."""
    plain = copy.deepcopy(plain)
    for row in plain["differences"]:
        if (row["model"], row["decoding"]) == (model, None):
            row["metrics"][metric] |= bounds
    return plain


def test_the_page_is_self_contained_and_well_formed():
    plain = made_up({"cloning": 7, "temporal-difference": 2}, steps=20)
    text = render(result_of(plain))
    page = Page(text)
    assert not page.open
    assert not page.tags & {"img", "link", "iframe", "object", "form"}
    assert text.count("<script") == 1
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    assert {"scores", "differences", "curves", "setup"} <= set(page.ids)
    assert "//" not in text
    for label in plain["objectives"]:
        # Scores, differences, and three decodings of all metrics.
        assert text.count(f'<th scope="row">{label}</th>') == 2 + 3 - (label == plain["baseline"])


def test_curves_of_all_families_are_on_one_axis():
    result = result_of(made_up(steps=12))
    drawn = learning_curves(result)
    assert drawn and drawn.models == [x for x in result.models if x != "teacher"]
    assert [panel.title for panel in drawn.panels] == [
        "KL in the set",
        "Leak",
        "Implied reward",
        "Soft value V",
    ]
    for panel in drawn.panels:
        # The mean and three seeds of the start and of every objective, teacher and others absent.
        counts = {f"m{i}": 4 for i in range(1, len(result.models))}
        assert Counter(re.findall(r'class="(m\d+)"', panel.svg)) == counts


def test_of_many_objectives_the_best_of_each_family_are_shown_at_first():
    plain = made_up(steps=2)
    result = result_of(plain)
    means = {row["model"]: row["metrics"]["forward_kl"]["mean"] for row in plain["imitation"]}
    shown = first_shown(result)
    assert shown[:3] == ["teacher", "start", result.distilled]
    found = choices(result)
    for family, members in found.items():
        if family:
            assert min((c.label for c in members), key=lambda x: means[x]) in shown
    assert len(shown) <= MOST_AT_FIRST + 2
    colours = [c.colour for members in found.values() for c in members if c.shown]
    assert len(set(colours)) == len(colours)
    assert [c.key for members in found.values() for c in members] == [
        f"m{i}" for i in range(len(result.models))
    ]


def test_few_objectives_are_all_shown_at_first(small: Any):
    result = result_of(small)
    assert first_shown(result) == result.models


def test_an_outlier_does_not_squeeze_the_others():
    """The last objective is far off: its arrow is at the end, and the others' dots are apart."""
    plain = made_up(SMALL, steps=5)
    drawn = next(d for d in interval_figures(result_of(plain)) if d.title == "Forward KL")
    assert re.search(r"rkl_te1 3\.\d", drawn.svg)
    ticks = [float(x) for x in re.findall(r">([\d.]+)</text>", drawn.svg.split("ytick_1")[0])]
    assert max(ticks) < 2


def test_the_side_of_a_difference_depends_on_the_measure(small: Any):
    label = list(small["objectives"])[1]

    def verdict(metric: str, low: float, high: float) -> str:
        bounds = {"mean": (low + high) / 2, "low": low, "high": high}
        result = result_of(changed(small, label, metric, **bounds))
        row = next(x for x in table_rows(result) if x.label == label)
        column = next(c for c in table_columns(result) if c.metric == metric)
        return difference_cell(result, row, result.baseline, column).verdict

    assert verdict("forward_kl", -0.2, -0.1) == "better"
    assert verdict("forward_kl", 0.1, 0.2) == "worse"
    assert verdict("forward_kl", -0.1, 0.2) == "even"
    assert verdict("leak", 0.0, 0.2) == "even"


def test_the_best_mean_of_the_objectives_is_bold(small: Any):
    result = result_of(small)
    column = next(c for c in table_columns(result) if c.title == "Forward KL")
    bold = [x.label for x in table_rows(result) if score_cell(result, x, column).best]
    means = {
        row["model"]: row["metrics"]["forward_kl"]["mean"]
        for row in small["imitation"]
        if row["model"] in small["objectives"]
    }
    assert bold == [min(means, key=lambda x: means[x])]


@pytest.mark.parametrize("decodings", [3, 5])
def test_the_terminal_table_fits_80_characters(decodings: int):
    """20 objectives, one with a label longer than the screen, and decodings of a user's own."""
    plain = made_up({"cloning": 9, "temporal-difference": 11}, steps=2)
    renamed = json.dumps(plain).replace("rkl_cl1", "reverse_kl_on_the_whole_vocabulary_" * 3)
    result = result_of(json.loads(renamed))
    more = [
        dataclasses.replace(score, decoding=f"another-decoding-{i}")
        for i in range(decodings - 3)
        for score in result.scores
        if score.decoding == "greedy"
    ]
    result = dataclasses.replace(result, scores=[*result.scores, *more])
    stream = io.StringIO()
    Console(file=stream, width=80).print(score_table(result))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(label[:5] in text for label in result.objectives)
    for row in plain["imitation"]:
        assert f"{row['metrics']['forward_kl']['mean']:.2f}" in text
    for score in plain["scores"]:
        assert f"{score['metrics']['teacher_nll']['mean']:.2f}" in text


def test_a_verdict_takes_the_place_of_rouge_in_terminal_and_sentences():
    plain = made_up(SMALL, steps=2)
    for row in [*plain["scores"], *plain["differences"]]:
        if row["decoding"] is not None:
            of = row["metrics"]["rouge_l"]
            hundredths = {k: of[k] / 100 for k in ("mean", "low", "high")} | {"seeds": of["seeds"]}
            row["metrics"] = {**row["metrics"], "exact_match": hundredths}
    result = result_of(plain)
    assert {"rouge_l", "exact_match"} <= {column.metric for column in table_columns(result)}
    stream = io.StringIO()
    Console(file=stream, width=80).print(score_table(result))
    text = stream.getvalue()
    assert "exact" in text
    assert "Rouge" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    said = " ".join(summary(result))
    assert "The teacher itself reaches Exact match 0.160 [" in said
    assert "Rouge-L" not in said


def test_many_objectives_are_counted_rather_than_named(small: Any):
    text = " ".join(summary(result_of(made_up(steps=2))))
    assert "30 objectives, 3 training seeds" in text
    found = re.search(r"Forward KL: (\d+) better than fkl_cl0, (\d+) worse, (\d+) not told", text)
    assert found and sum(map(int, found.groups())) == 29
    assert "others" in text
    assert "better than fkl_cl0" not in " ".join(summary(result_of(small)))


def test_failures_are_named_and_texts_escaped(small: Any):
    plain = small | {"failed": {"bad, seed 1": "RuntimeError: <script>inf</script>"}}
    page = render(result_of(plain))
    assert "Left out: bad, seed 1 failed (RuntimeError: &lt;script&gt;" in page


def test_a_failed_objective_keeps_its_row_with_the_reason(small: Any):
    why = "DivergenceError: no number after update 3\x1b[2J"
    result = result_of(small | {"failed": {"bad, seed 0": why, "bad, seed 1": why}})
    cells = [score_cell(result, score_rows(result)[-1], c) for c in table_columns(result)]
    assert score_rows(result)[-1].label == "bad"
    assert [cell.mean for cell in cells if cell.mean] == ["failed"]
    assert cells[-1].hint == f"{why}; {why}"
    stream = io.StringIO()
    Console(file=stream, width=80).print(score_table(result))
    said = " ".join(stream.getvalue().split())
    assert "bad, seed 1 failed: DivergenceError: no number after update 3\\x1b[2J" in said
    assert "bad failed" in said
    assert all(row.label != "bad" for row in table_rows(result))
