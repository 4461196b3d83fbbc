"""Sweeps in a run: curves and matched differences in its result, the same after a kill."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import kill_at, read_json, untimed, write_world
from tdistill import cli
from tdistill.evaluation.intervals import Sample, crossed_interval
from tdistill.run.sweeps import matched_to, sweep_points

LABELS = ("sft", "kd")
QUALITIES = {"rouge_l", "teacher_nll", "reverse_kl"}


@dataclass(frozen=True)
class Swept:
    """A recipe with two temperatures, and a run of it."""

    recipe: Path
    folder: Path

    def words(self, out: Path) -> list[str]:
        return ["run", str(self.recipe), "--out", str(out)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweeps")
    recipe = write_world(folder / "world")
    plain = yaml.safe_load(recipe.read_text())
    plain |= {"objectives": {label: {} for label in LABELS}, "distilled": "kd"}
    plain["evaluation"] |= {
        "sweep": {"temperatures": [0.5, 1.0], "seeds": 2, "levels": 3},
        "decodings": {"greedy": {"greedy": True}},
        "tuned_models": [],
    }
    recipe.write_text(yaml.safe_dump(plain, sort_keys=False))
    found = Swept(recipe, folder / "out")
    assert cli.main(found.words(found.folder)) == 0
    return found


def test_every_model_has_a_curve(swept: Swept):
    metrics = read_json(swept.folder / "metrics.json")
    assert list(metrics["sweep"]) == ["teacher", "start", *LABELS]
    for points in metrics["sweep"].values():
        assert [point["temperature"] for point in points] == [0.5, 1.0]
        for point in points:
            assert set(point["metrics"]) >= QUALITIES | {"entropy", "bigram_entropy", "self_bleu"}
            entropy, bigrams = (point["metrics"][x] for x in ("entropy", "bigram_entropy"))
            assert entropy["low"] < entropy["mean"] < entropy["high"]
            assert bigrams["low"] is None
        assert points[0]["metrics"]["entropy"]["mean"] < points[1]["metrics"]["entropy"]["mean"]


def interpolated(swept: Swept, label: str, level: float) -> Sample:
    """Teacher NLL of a model at an entropy, from what its two temperatures left."""
    low, high = read_json(swept.folder / f"stages/evaluate-{label}.json")["sweep"]
    x0, x1 = (Sample.from_dict(p["per_prompt"]["entropy"]).mean for p in (low, high))
    share = (level - x0) / (x1 - x0)
    a, b = (p["per_prompt"]["teacher_nll"] for p in (low, high))
    parts = [np.array([x["values"], x["weights"]]) / np.sum(x["weights"]) for x in (a, b)]
    return Sample(*((1 - share) * parts[0] + share * parts[1]))


def test_matched_differences_are_those_of_the_records(swept: Swept):
    metrics = read_json(swept.folder / "metrics.json")
    rows = metrics["matched"]
    # The letters of this world make one word a response: no bigrams, no levels of them.
    assert [(row["model"], row["variable"]) for row in rows] == [("kd", "entropy")] * 3
    assert {row["comparisons"] for row in rows} == {3}
    assert all(set(row["metrics"]) == QUALITIES for row in rows)
    for row in rows:
        ours, theirs = (interpolated(swept, label, row["level"]) for label in ("kd", "sft"))
        if row["metrics"]["teacher_nll"] is not None:
            expected = crossed_interval([ours], [theirs], level=1 - 0.05 / 3).to_dict()
            found = row["metrics"]["teacher_nll"]
            assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert any(row["metrics"]["teacher_nll"] is not None for row in rows)


def test_the_page_shows_them(swept: Swept):
    page = (swept.folder / "report.html").read_text()
    assert '<section id="sweep">' in page
    assert "m = 3" in page
    assert len(re.findall(r'id="sweep-[\w-]+-title"', page)) >= 4


@pytest.mark.slow
def test_killed_in_a_sweep_it_gives_the_same(
    swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    said = kill_at("during-a-sweep", *swept.words(out))
    assert said.endswith("[evaluate-start]\n")
    assert cli.main(swept.words(out)) == 0
    assert "[evaluate-teacher] reused" in capsys.readouterr().out
    assert untimed(read_json(out / "metrics.json")) == untimed(
        read_json(swept.folder / "metrics.json")
    )


def record(scale: float, shift: float = 0.0) -> dict[str, Any]:
    """A sweep whose quality is 10 less the entropy, and the shift."""
    points = []
    for temperature in (0.2, 0.6, 1.0):
        entropy = scale * temperature
        flat = Sample(np.full(4, entropy)).to_dict()
        quality = Sample(10 - entropy + shift + np.arange(4)).to_dict()
        points.append(
            {
                "temperature": temperature,
                "per_prompt": {"entropy": flat, "rouge_l": quality},
                "together": {"bigram_entropy": 5 + entropy},
            }
        )
    return {"sweep": points}


def test_levels_are_the_baselines_and_what_is_not_reached_is_not_claimed():
    judged = {
        "kd": [record(1.0), record(1.1)],
        "same": [record(2.0), record(2.1)],
        "better": [record(1.0, 1.5), record(0.9, 1.5)],
        "sharp": [record(0.1), record(0.1)],
    }
    rows = matched_to("kd", judged, levels=2)
    assert len(rows) == 3 * 2 * 2
    assert {row.comparisons for row in rows} == {3 * 2}
    # Seeds of the baseline reach from .2 and .22 to 1 and 1.1: [.22, 1] is common.
    assert sorted({round(row.level, 3) for row in rows}) == [0.415, 0.805, 5.415, 5.805]
    found = {(row.model, round(row.level, 3)): row.metrics["rouge_l"] for row in rows}
    assert found["same", 0.415] is None, "its second seed begins at .42"
    same = found["same", 0.805]
    assert same is not None and same.mean == pytest.approx(0.0)
    for level in (0.415, 5.415):
        better = found["better", level]
        assert better is not None
        assert better.mean == pytest.approx(1.5)
        assert better.seeds == pytest.approx([1.5, 1.5])
    assert all(value is None for (model, _), value in found.items() if model == "sharp")


def test_points_are_means_over_training_seeds():
    points = sweep_points([record(1.0), record(2.0)])
    assert [point.temperature for point in points] == [0.2, 0.6, 1.0]
    bigrams, entropy = (points[2].metrics[name] for name in ("bigram_entropy", "entropy"))
    assert bigrams is not None and (bigrams.mean, bigrams.seeds) == (6.5, [6.0, 7.0])
    assert entropy is not None and entropy.mean == pytest.approx(1.5)
    assert sweep_points([{"sweep": []}]) == []
