"""A world that a run makes itself: when it is made, what is refused, and the worlds of studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import PHASE, digest, read_json
from tdistill import cli
from tdistill.errors import InvalidValueError, RecipeError
from tdistill.recipe import read_recipe
from tdistill.run.execute import run_recipe
from tdistill.run.groundwork import Groundwork
from tdistill.run.keys import stage_keys

LETTERS = """
from dataclasses import dataclass
from pathlib import Path

from neighbour import SPLITS
from pipeline import prompt, write_rows
from tdistill.models.language_model import save
from tiny import tiny_lm


@dataclass(frozen=True)
class Letters:
    completion: str = " k l m"
    scale: float = 3.0
    broken: bool = False

    def make(self, folder: Path) -> None:
        with (Path(__file__).parent / "made.txt").open("a") as made:
            made.write(f"{sorted(p.name for p in folder.iterdir())}\\n")
        save(tiny_lm("llama", scale=self.scale), folder / "teacher")
        if self.broken:
            return
        save(tiny_lm("llama", seed=2, num_hidden_layers=1), folder / "student")
        for split, (count, stride) in SPLITS.items():
            prompts = [prompt(i, stride) for i in range(count)]
            write_rows(folder / f"{split}.jsonl", prompts, self.completion)


@dataclass(frozen=True)
class Idle:
    x: int = 0
"""
SPLITS = 'SPLITS = {"train": (9, 1), "test": (6, 3), "valid": (4, 7)}\n'


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with the code of its world beside it, seen from a folder that has neither."""
    folder, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delitem(__import__("sys").modules, "neighbour", raising=False)
    (folder / "letters.py").write_text(LETTERS)
    (folder / "neighbour.py").write_text(SPLITS)
    recipe = {
        "world": {"make": "letters.py:Letters"},
        "teacher": {"path": "world:teacher"},
        "student": {"path": "world:student"},
        "data": {s: f"world:{s}.jsonl" for s in ("train", "valid", "test")},
        "rollouts": {"n": 1, "max_new_tokens": 4},
        "start": None,
        "training": PHASE | {"steps": 2},
        "objectives": {"kd": {}},
        "distilled": "kd",
        "evaluation": {"seeds": 1, "max_new_tokens": 4, "tuned_models": []},
    }
    path = folder / "letters.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def made(study: Path) -> list[str]:
    """What was in the folder of the world each time that it was made."""
    return (study.parent / "made.txt").read_text().splitlines()


def run(study: Path, out: Path, *options: str) -> list[str]:
    lines: list[str] = []
    run_recipe(read_recipe(study, options), out, lines.append)
    return [line for line in lines if line.startswith("[")]


@pytest.mark.slow
def test_a_run_makes_its_world_once_and_again_when_a_field_changes(study: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert cli.main(["run", str(study), "--out", str(out)]) == 0
    metrics = read_json(out / "metrics.json")
    assert metrics["recipe"]["world"]["settings"] == {
        "completion": " k l m",
        "scale": 3.0,
        "broken": False,
    }
    assert metrics["recipe"]["teacher"]["path"] == "world:teacher"
    assert "world" in metrics["seconds"]["groundwork"]
    assert len(made(study)) == 1
    assert "[world] reused" in run(study, out, "--training.steps", "3")
    assert len(made(study)) == 1
    lines = run(study, out, "--world.settings.completion", "' m'")
    assert {"[world]", "[rollouts]", "[kd]"} <= set(lines)
    assert len(made(study)) == 2
    assert made(study)[1] == "['key.txt']"  # nothing of the other world was left
    assert read_recipe(out / "recipe.resolved.yaml").world is not None


def test_another_world_is_another_run(study: Path):
    keys = stage_keys(read_recipe(study))
    for option in ("--world.settings.scale=2", "--world.settings.completion=x"):
        changed = stage_keys(read_recipe(study, [option]))
        assert not {name for name in keys if keys[name] == changed[name]}
    assert stage_keys(read_recipe(study, ["--world.settings.scale=3"])) == keys
    (study.parent / "neighbour.py").write_text(SPLITS + "# other code\n")
    assert stage_keys(read_recipe(study))["world"] != keys["world"]


def test_the_key_does_not_hang_on_where_the_code_is(study: Path, tmp_path: Path):
    keys = stage_keys(read_recipe(study))
    study.parent.rename(tmp_path / "moved")
    assert stage_keys(read_recipe(tmp_path / "moved" / study.name)) == keys


def test_an_interrupted_world_goes_on_from_what_it_left(study: Path, tmp_path: Path):
    recipe = read_recipe(study, ["--world.settings.broken=true"])
    ground = Groundwork(recipe, tmp_path / "out", print)
    for _ in range(2):
        with pytest.raises(InvalidValueError, match="expected it to leave world:student, found"):
            ground.make_world()
    assert made(study) == ["['key.txt']", "['key.txt', 'teacher']"]


def test_runs_share_a_world_in_a_folder_of_its_own(study: Path, tmp_path: Path):
    shared = f"--world.folder={tmp_path / 'worlds' / 'letters'}"
    for out in ("one", "two"):
        Groundwork(read_recipe(study, [shared]), tmp_path / out, print).make_world()
    assert len(made(study)) == 1
    alone = Groundwork(read_recipe(study), tmp_path / "three", print)
    assert alone.keys == Groundwork(read_recipe(study, [shared]), tmp_path / "one", print).keys
    assert (tmp_path / "worlds/letters/teacher/config.json").exists()
    assert not (tmp_path / "one/world").exists()


def test_a_shared_world_is_not_made_over(study: Path, tmp_path: Path):
    folder = tmp_path / "worlds" / "letters"
    shared = f"--world.folder={folder}"
    Groundwork(read_recipe(study, [shared]), tmp_path / "one", print).make_world()
    before = digest(folder)
    other = read_recipe(study, [shared, "--world.settings.scale=5"])
    with pytest.raises(InvalidValueError, match=r"world\.folder: expected the world of this class"):
        Groundwork(other, tmp_path / "two", print).make_world()
    assert digest(folder) == before
    Groundwork(read_recipe(study, [shared]), tmp_path / "three", print).make_world()
    assert len(made(study)) == 1


@pytest.mark.parametrize("shared", [True, False])
def test_files_of_others_are_never_deleted_for_a_world(study: Path, shared: bool, tmp_path: Path):
    folder = tmp_path / "mine" if shared else tmp_path / "out" / "world"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("the only copy")
    options = [f"--world.folder={folder}"] if shared else []
    with pytest.raises(
        InvalidValueError, match=r"files of another origin in .*name another folder"
    ):
        Groundwork(read_recipe(study, options), tmp_path / "out", print).make_world()
    assert (folder / "thesis.txt").read_text() == "the only copy"
    (folder / "thesis.txt").unlink()  # an empty folder is as good as none
    Groundwork(read_recipe(study, options), tmp_path / "out", print).make_world()
    assert (folder / "teacher/config.json").exists()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--world.make=letters.py:Nothing", "a class Nothing with a method make"),
        ("--world.make=letters.py:Idle", "a class Idle with a method make"),
        ("--world.make=nowhere.py:Letters", "expected a file"),
        ("--world.settings.scail=3", "did you mean 'scale'"),
        ("--world.settings.scale=wide", "scale: expected a number"),
        ("--world=null", "teacher.path: expected a section `world` that makes it"),
    ],
)
def test_what_cannot_be_made_is_refused_before_any_work(study: Path, option: str, text: str):
    document: Any = yaml.safe_load(study.read_text())
    document["world"]["make"] = str(study.parent / "letters.py") + ":Letters"
    study.write_text(yaml.safe_dump(document))
    option = option.replace("letters.py", str(study.parent / "letters.py"))
    with pytest.raises(RecipeError, match=text):
        read_recipe(study, [option])
