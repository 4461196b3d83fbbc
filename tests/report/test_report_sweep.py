"""Quality against entropy and diversity on the page, on made-up numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest
from test_report import Page

from made_up import made_up
from tdistill.report.measures import DASH
from tdistill.report.page import render
from tdistill.report.result import TEACHER, Result, result_of
from tdistill.report.sweeps import (
    VARIABLES,
    Level,
    level_columns,
    matched_cell,
    matched_rows,
    sweep_curves,
    sweep_table,
    swept_qualities,
)

SMALL = {"cloning": 3, "temporal-difference": 2}


@pytest.fixture(scope="module")
def result() -> Result:
    return result_of(made_up(SMALL, steps=20, swept=True))


def test_the_page_has_figures_and_tables(result: Result):
    text = render(result)
    page = Page(text)
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    assert "sweep" in page.ids
    # Two qualities by two variables; made of 4 objectives at 3 values.
    assert len(re.findall(r'id="sweep-[\w-]+-title"', text)) == 4
    assert "m = 12" in text
    assert "T = 0.2, 0.4, 0.6, 0.8, 1, a dot each" in text
    for heading in ("At equal entropy", "At equal bigram entropy", *VARIABLES.values()):
        assert f"<h3>{heading}" in text
    assert "<dt>Bigram entropy</dt>" in text


def test_without_a_sweep_the_page_says_nothing_of_it():
    text = render(result_of(made_up(SMALL, steps=20)))
    assert 'id="sweep"' not in text and "#sweep" not in text and "Bigram" not in text


def test_every_panel_has_all_models_on_one_axis():
    many = result_of(made_up({"cloning": 9, "temporal-difference": 2}, steps=20, swept=True))
    drawn = sweep_curves(many, "entropy")
    assert drawn.models == list(many.sweep) == many.models
    assert [panel.title for panel in drawn.panels] == ["Rouge-L", "Teacher NLL"]
    for panel in drawn.panels:
        # A band and a line each; the teacher and the baseline lie on top of the others.
        order = re.findall(r'class="m(\d+)" id="[\w-]*-m\d+-1"', panel.svg)
        assert sorted(map(int, order)) == list(range(len(many.models)))
        baseline = many.models.index(many.baseline)
        assert [int(x) for x in order[-2:]] == [baseline, 0]


def test_a_line_goes_through_its_points_in_a_band(result: Result):
    svg = sweep_curves(result, "entropy").panels[0].svg
    assert "entropy, nats/token" in svg
    assert svg.count("fill-opacity: 0.13") == len(result.models)
    assert svg.count("stroke-dasharray: 4.5,3") == 1, "the teacher alone is dashed"
    mean = result.sweep[TEACHER][0].metrics["rouge_l"]
    assert mean is not None and f"Teacher from {mean.mean:.1f} to" in svg


def test_what_was_not_measured_is_no_quality(result: Result):
    assert swept_qualities(result) == ["rouge_l", "teacher_nll"]


def test_differences_have_a_verdict_and_a_dash_where_nothing_is_claimed(result: Result):
    rows = {row.label: row for row in matched_rows(result)}
    assert set(rows) == set(result.objectives) - {result.baseline}
    diverged = rows[list(result.objectives)[-1]]
    columns = level_columns(result, "bigram_entropy")
    assert [(c.metric, c.place) for c in columns[:3]] == [
        ("rouge_l", "at 5.10"),
        ("rouge_l", "at 5.60"),
        ("rouge_l", "at 6.10"),
    ]
    cells = [matched_cell(result, diverged, column) for column in columns]
    assert [cell.verdict for cell in cells] == ["better", "better", ""] * 2
    assert cells[2].mean == DASH and "nothing is claimed" in cells[2].hint
    assert cells[0].mean.startswith("+") and cells[0].spread.startswith("[")


def test_the_verdict_follows_the_corrected_interval():
    plain: Any = made_up(SMALL, steps=20, swept=True)
    row = plain["matched"][0]
    row["metrics"]["rouge_l"] |= {"mean": 1.0, "low": -0.1, "high": 2.1}
    result = result_of(plain)
    label = matched_rows(result)[0]
    column = Level("rouge_l", row["variable"], row["level"])
    assert (label.label, matched_cell(result, label, column).verdict) == (row["model"], "even")


def test_every_number_is_in_a_table(result: Result):
    names, rows = sweep_table(result)
    assert names[:3] == ["entropy", "rouge_l", "teacher_nll"] and "self_bleu" in names
    assert len(rows) == len(result.sweep) * 5
    assert rows[0][:2] == ("Teacher", "T = 0.2")
    assert [cell.spread != "" for cell in rows[0][2]] == [True] * 3 + [False] * 3
