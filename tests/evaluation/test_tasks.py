"""Tasks of lm-evaluation-harness, offline: a task file of our own, on the tiny models."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline import Finished
from tdistill import cli
from tdistill.evaluation.config import HIGHER, LOWER, EvaluationConfig
from tdistill.evaluation.tasks import check_tasks, judge_by_tasks
from tdistill.models.language_model import LanguageModel
from tdistill.recipe import read_recipe
from tdistill.report.measures import measure
from tdistill.report.result import result_of
from tdistill.report.tables import Column, score_table, table_columns
from tiny import tiny_lm

ROWS = [{"prompt": f"a {x}", "choices": ["c", "d", "e"], "label": i % 3}
        for i, x in enumerate("bfghij")]  # fmt: skip
harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Which of three letters goes on."""
    data = tmp_path / "letters.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    plain = {
        "task": "letters",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "c")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    path = tmp_path / "letters.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@torch.no_grad()
def right(model: LanguageModel) -> list[float]:
    """Whether the likeliest of the letters is the one, document by document."""
    found = []
    for row in ROWS:
        ids = torch.tensor([model.tokenizer(row["prompt"]).input_ids])
        logits = model.model(ids).logits[0, -1]
        letters = model.tokenizer.convert_tokens_to_ids(row["choices"])
        found.append(float(int(logits[letters].argmax()) == row["label"]))
    return found


@harness
def test_every_document_is_judged_by_the_model(task: Path):
    config = EvaluationConfig(tasks=(str(task),))
    assert check_tasks(config) == "letters (6 documents)"
    seen = set()
    for seed in range(3):
        model = tiny_lm("llama", seed=seed)
        (sample,) = (found := judge_by_tasks(model, config)).values()
        assert list(found) == ["task:letters acc"]
        assert sample.values.tolist() == right(model)
        seen.add(sample.mean)
    assert len(seen) > 1
    limited = judge_by_tasks(tiny_lm("llama"), EvaluationConfig(tasks=(str(task),), task_limit=2))
    assert [len(sample.values) for sample in limited.values()] == [2]


@harness
def test_nothing_that_comes_after_depends_on_it(task: Path, capsys: pytest.CaptureFixture[str]):
    model = tiny_lm("llama")
    states: Any = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    before = model.tokenizer.pad_token, model.tokenizer.padding_side
    judge_by_tasks(model, EvaluationConfig(tasks=(str(task),)))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.get_rng_state().equal(states[2])
    assert (model.tokenizer.pad_token, model.tokenizer.padding_side) == before
    assert capsys.readouterr() == ("", "")


@harness
@pytest.mark.parametrize("content", ["task: [", "task: x\ndataset_path: json\n", "x: 1\n"])
def test_a_task_that_cannot_be_loaded_is_one_line(content: str, tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"evaluation\.tasks: expected tasks of lm-eval") as error:
        check_tasks(EvaluationConfig(tasks=(str(path),)))
    assert "\n" not in str(error.value)


@harness
@pytest.mark.slow
def test_a_run_has_them_in_its_table(task: Path, tmp_path: Path, finished: Finished):
    recipe = tmp_path / "recipe.yaml"
    plain = yaml.safe_load(finished.recipe.read_text())
    plain["evaluation"]["tasks"] = ["letters.yaml"]
    plain["objectives"] = {"kd": {}, "sft": {}}
    plain["distilled"] = "kd"
    recipe.write_text(yaml.safe_dump(plain))
    assert cli.main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 0
    result = result_of(json.loads((tmp_path / "out" / "metrics.json").read_text()))
    for label in result.models:
        own = result.estimate(label, "task:letters acc", None)
        assert own is not None
        assert own.mean in [n / 6 for n in range(7)]
    assert result.difference("sft", "kd", "task:letters acc", None) is not None
    assert "letters acc" in (tmp_path / "out" / "report.html").read_text()
    assert "letters acc" in (tmp_path / "out" / "student" / "README.md").read_text()


def test_the_package_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tdistill.evaluation.tasks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'tdistill\[tasks\]'"):
        check_tasks(EvaluationConfig(tasks=("arc_easy",)))


def test_without_tasks_nothing_is_imported_or_done():
    model: Any = None
    assert judge_by_tasks(model, EvaluationConfig()) == {}


def test_a_task_s_file_is_looked_for_beside_the_recipe(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "teacher: {path: t}\nstudent: {layers: 2}\nevaluation: {tasks: [arc_easy, mine/t.yaml]}\n"
    )
    assert read_recipe(path).evaluation.tasks == ("arc_easy", f"{tmp_path}/mine/t.yaml")


def test_tasks_stand_in_the_same_table(finished: Finished):
    plain = finished.metrics
    names = [f"{HIGHER}arc_easy acc", f"{LOWER}wikitext word_perplexity", f"{HIGHER}third acc"]
    for i, row in enumerate(plain["imitation"]):
        for j, name in enumerate(names):
            row["metrics"][name] = {"mean": 0.25 + i + j, "low": 0.2, "high": 9.0, "seeds": []}
    result = result_of(plain)
    columns = table_columns(result)
    assert [c for c in columns if c.metric in names] == [Column(name) for name in names]
    assert [measure(name).better for name in names] == [1, -1, 1]
    assert measure(names[1]).title == "wikitext word_perplexity"
    heads = [str(column.header) for column in score_table(result).columns]
    assert "\narc_easy" in heads
    assert "\nwikitext" in heads
    assert not any("third" in head for head in heads)  # on the page
