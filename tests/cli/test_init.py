"""`tdistill init`: recipes that can be run, after a look at what they are for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import tdistill
from serving import serving
from tdistill import cli
from tdistill.models.language_model import save
from tdistill.planning import memory, plan
from tdistill.planning.networks import network_of
from tdistill.planning.plan import job_of, make_plan
from tdistill.planning.scale import Known
from tdistill.ready import RECIPES
from tdistill.ready.sums import Sums, answer, is_right
from tdistill.recipe import read_recipe
from tdistill.run.checks import planned_bytes
from tdistill.run.keys import result_key
from tiny import tiny_lm

ROOT = Path(__file__).parents[2]
SHIPPED = [
    path
    for folder in (Path(tdistill.__file__).parent, ROOT / "studies", ROOT / "benchmarks")
    for path in sorted(folder.rglob("*.yaml"))
    if "teacher:" in path.read_text(encoding="utf-8")
]
HOSTILE = "evil\nstudent: {layers: 1}\u2028\x1b[2J"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of five layers, and rows with and without responses."""
    folder = tmp_path_factory.mktemp("own")
    save(tiny_lm("llama", num_hidden_layers=5), folder / "teacher")
    rows = [{"question": " ".join("abcdefghij"[: 1 + i % 10]) + f" w{i}"} for i in range(30)]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{**row, "answer": "k l m", HOSTILE: "x"} for row in rows]
    (folder / "answered.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def init(folder: Path, *words: str) -> Path:
    """Write a recipe; returns its file."""
    path = folder / "recipe.yaml"
    assert cli.main(["init", *words, "--out", str(path)]) == 0
    return path


def leave_untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations of a size, without a trace."""
    for name in ("update_bytes", "reading_bytes"):
        monkeypatch.setattr(memory, name, lambda *shape, **options: 1e6)


@pytest.mark.parametrize("name", RECIPES)
def test_every_ready_recipe_can_be_done(
    name: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["--teacher", str(own / "teacher"), "--data", str(own / "answered.jsonl")]
    path = init(tmp_path, name, *words)
    recipe = read_recipe(path)
    assert recipe.teacher.path == str(own / "teacher")
    assert planned_bytes(recipe, 1000, 100, 64) > 0
    if name != "served-teacher":  # which is a test of its own: somebody must serve it
        assert recipe.student.layers == 3
        assert len(result_key(recipe)) == 16
        assert cli.main(["doctor", str(path)]) == 0
        leave_untraced(monkeypatch)
        made = make_plan(job_of(recipe, Known(), device="h100"), Known())
        of_30 = 30 - 3 - 2  # a tenth and a twentieth are held out
        assert made.job.scale.prompts == (1000 if recipe.world else of_30)
        assert made.fits(made.memory["judging"])


def test_the_recipe_of_a_served_teacher_can_be_done(
    own: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    words = ["--teacher", str(own / "teacher"), "--data", str(own / "answered.jsonl")]
    path = init(tmp_path, "served-teacher", *words)
    assert "into models/student, on" in capsys.readouterr().out.replace(f"{tmp_path}/", "")
    assert read_recipe(path).teacher.backend == "server"
    save(tiny_lm("llama", num_hidden_layers=2), tmp_path / "models/student")
    with serving(tiny_lm("llama", num_hidden_layers=5)) as server:
        assert cli.main(["doctor", str(path), "--teacher.server.url", server.url]) == 0
    assert "64 tokens listed a step" in capsys.readouterr().out
    leave_untraced(monkeypatch)
    made = make_plan(job_of(read_recipe(path), Known(), device="h100"), Known())
    assert made.memory["rollouts"].weights == 0  # the server's
    assert made.memory["judging"].weights == made.job.student_bytes


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_loads_and_is_planned(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    recipe = read_recipe(path)
    assert recipe.distilled in recipe.objectives
    assert planned_bytes(recipe, 1000, 100, 64) > 0
    # Models and data of most are made by their runs: tiny models, and prompts that are stated.
    network = network_of(tiny_lm("llama").model.config)
    monkeypatch.setattr(plan, "networks_of", lambda recipe: (network, network))
    monkeypatch.setattr(plan, "refuse_unmade", lambda recipe: None)
    leave_untraced(monkeypatch)
    there = {split: "demo:test" for split in ("train", "valid", "test")}
    recipe = replace(recipe, data=replace(recipe.data, **there))
    made = make_plan(job_of(recipe, Known(prompts=100)), Known())
    labels = {"teacher", "start", *recipe.objectives}
    stages = {stage.work.stage: stage for stage in made.stages}
    assert stages.keys() >= {*recipe.objectives, *(f"evaluate-{x}" for x in labels)}
    assert all(stage.seconds > 0 for stage in made.stages)
    assert made.memory.keys() >= {"student", "judging", *recipe.objectives}


def test_no_shipped_recipe_was_overlooked():
    names = {path.name for path in SHIPPED}
    assert {"recipe.yaml", "two-ways.yaml", "stories.yaml", "choices.yaml"} <= names
    templates = {file.name for file in (ROOT / "src/tdistill/ready").glob("*.j2")}
    assert templates == {f"{name}.yaml.j2" for name in (*RECIPES, "base")}


def test_what_was_seen_stands_in_the_recipe(own: Path, tmp_path: Path):
    words = ["--teacher", str(own / "teacher"), "--data", str(own / "answered.jsonl")]
    path = init(tmp_path, *words)
    text = path.read_text()
    assert "#   LlamaForCausalLM, " in text
    assert " 5 layers; no chat template" in text
    assert "#   30 rows; columns question (instruction), answer (output)" in text
    assert "tokens: prompts up to 31, 99% within 31; responses up to 4, 4" in text
    recipe = read_recipe(path)
    assert (recipe.data.max_prompt_tokens, recipe.data.max_response_tokens) == (32, 32)
    assert recipe.rollouts.max_new_tokens == recipe.evaluation.max_new_tokens == 32
    assert recipe.start is not None
    assert recipe.start.rows == "both"


def test_without_responses_students_start_from_the_teacher(own: Path, tmp_path: Path):
    words = ["--teacher", str(own / "teacher"), "--data", str(own / "asked.jsonl")]
    recipe = read_recipe(init(tmp_path, *words))
    assert recipe.start is not None
    assert recipe.start.rows == "teacher"
    assert recipe.rollouts.max_new_tokens == 128


def test_names_of_strangers_stay_in_their_comment(own: Path, tmp_path: Path):
    words = ["--teacher", str(own / "teacher"), "--data", str(own / "answered.jsonl")]
    path = init(tmp_path, *words)
    assert "\x1b" not in path.read_text()
    assert "\u2028" not in path.read_text()
    assert r"not used: evil\nstudent" in path.read_text()
    assert yaml.safe_load(path.read_text())["student"] == {"layers": 3}


def test_paths_in_the_recipe_s_folder_are_relative(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(own)
    words = ["--teacher", "teacher", "--data", "asked.jsonl"]
    assert cli.main(["init", *words, "--out", "sub.yaml"]) == 0
    plain = yaml.safe_load(Path("sub.yaml").read_text())
    assert (plain["teacher"]["path"], plain["data"]["train"]) == ("teacher", "asked.jsonl")
    assert cli.main(["init", *words, "--out", str(tmp_path / "far.yaml")]) == 0
    far = read_recipe(tmp_path / "far.yaml")
    assert (far.teacher.path, far.data.train) == (str(own / "teacher"), str(own / "asked.jsonl"))


def test_the_list_and_a_recipe_for_nothing_in_particular(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["init", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(RECIPES)
    init(tmp_path, "own-objective")
    said = capsys.readouterr().out
    assert "put your teacher in teacher.path" in said
    assert "put your prompts in data.train" in said
    assert (tmp_path / "own_objective.py").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["lap-top"], "lap-top: expected a ready recipe (laptop, one-gpu, "),
        (["--teacher", "./none"], "./none: expected a folder with a model"),
        (["--data", "none.jsonl"], "found nothing at none.jsonl"),
    ],
)
def test_what_cannot_be_written_is_one_error(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "new" / "recipe.yaml"
    assert cli.main(["init", *words, "--out", str(path)]) == 2
    assert text in capsys.readouterr().err
    assert not path.parent.exists()


def test_what_is_there_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "sums.py").write_text("mine")
    path = tmp_path / "recipe.yaml"
    assert cli.main(["init", "arithmetic", "--out", str(path)]) == 2
    assert "expected a file to make, found" in capsys.readouterr().err
    assert not path.exists()
    assert (tmp_path / "sums.py").read_text() == "mine"


def test_sums_are_right_apart_and_judged(tmp_path: Path):
    Sums(largest=20, prompts=100).make(tmp_path)
    rows: dict[str, list[Any]] = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "valid", "test")
    }
    assert {split: len(found) for split, found in rows.items()} == {
        "train": 80,
        "valid": 10,
        "test": 10,
    }
    prompts = [row["prompt"] for found in rows.values() for row in found]
    assert len(set(prompts)) == 100
    assert answer("What is 17 plus 5?") == "22"
    assert answer("What is 17 minus 5?") == "12"
    assert all(is_right(f"It is {r['completion']}.", [], r["prompt"]) for r in rows["train"])
    assert not is_right("17 plus 5 is 23", [], "What is 17 plus 5?")
    assert is_right("17 + 1,005 = 1,022", [], "What is 17 plus 1005?")
    assert not is_right("I do not know.", [], "What is 17 plus 5?")
