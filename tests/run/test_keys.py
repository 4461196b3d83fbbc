"""What work depends on: contents that are read, not places, pages, or what is judged with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import LABELS, write_rows, write_world
from tdistill.models.language_model import save
from tdistill.recipe import read_recipe
from tdistill.run.keys import stage_keys
from tiny import tiny_lm

JUDGED = {"held-out", *(f"evaluate-{label}" for label in LABELS)}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def changed(recipe: Path, before: dict[str, str], *words: str) -> set[str]:
    after = stage_keys(read_recipe(recipe, words))
    return {stage for stage in before if after[stage] != before[stage]}


def several_templates(folder: Path) -> None:
    """As transformers saves a tokenizer that has more than one."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")


def reworded(config: Path) -> None:
    """The same values as another release of transformers writes them."""
    values = json.loads(config.read_text())
    told = {"_name_or_path": "/elsewhere", "transformers_version": "9.9"}
    config.write_text(json.dumps(dict(sorted((values | told).items(), reverse=True)), indent=8))


@pytest.mark.parametrize(
    "touch",
    [
        lambda folder: (folder / "README.md").write_text("about it"),
        lambda folder: (folder / "LICENSE").write_text("free"),
        lambda folder: (folder / "training_args.bin").write_bytes(b"x"),
        lambda folder: (folder / "trainer_state.json").write_text("{}"),
        lambda folder: (folder / "modeling_x.py").write_text("x"),
        lambda folder: (folder / ".cache").mkdir(),
        lambda folder: reworded(folder / "config.json"),
    ],
)
def test_what_is_not_read_of_a_model_changes_nothing(
    touch: Callable[[Path], object], recipe: Path, tmp_path: Path
):
    teacher = tmp_path / "teacher"
    shutil.copytree(recipe.parent / "teacher", teacher)
    before = stage_keys(read_recipe(recipe))
    touch(teacher)
    assert changed(recipe, before, "--teacher.path", str(teacher)) == set()


@pytest.mark.parametrize(
    "touch",
    [
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
        lambda folder: several_templates(folder),
        lambda folder: (folder / "config.json").write_text(
            (folder / "config.json")
            .read_text()
            .replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1')
        ),
        lambda folder: save(tiny_lm("llama", seed=1), folder),
    ],
)
def test_what_is_read_of_a_model_changes_everything(
    touch: Callable[[Path], object], recipe: Path, tmp_path: Path
):
    teacher = tmp_path / "teacher"
    shutil.copytree(recipe.parent / "teacher", teacher)
    before = stage_keys(read_recipe(recipe))
    touch(teacher)
    assert changed(recipe, before, "--teacher.path", str(teacher)) == set(before)


def test_what_models_are_judged_on_trains_none_again(recipe: Path, tmp_path: Path):
    before = stage_keys(read_recipe(recipe))
    write_rows(tmp_path / "other.jsonl", ["a b", "b c"])
    for split in ("test", "valid"):
        words = (f"--data.{split}", str(tmp_path / "other.jsonl"))
        assert changed(recipe, before, *words) == JUDGED
        assert changed(recipe, before, f"--data.limit_{split}", "2") == JUDGED
    # A part of the training prompts that is held out is another thing.
    assert "rollouts" in changed(recipe, before, "--data.test", "auto")


@pytest.mark.parametrize("stages", [("sft",), ("start",)])
def test_of_given_responses_the_prompts_to_judge_on_are_left_out(stages: tuple[str], recipe: Path):
    words = ["--rollouts.responses", str(recipe.parent / "train.jsonl")]
    before = stage_keys(read_recipe(recipe, words))
    assert set(stages) < changed(recipe, before, *words, "--data.limit_test", "2")


@pytest.mark.parametrize(
    "words",
    [
        ("--training.report_to", "[tensorboard]"),
        ("--training.save_steps", "3"),
        ("--start.training.save_steps", "3"),
        ("--data.max_boundary_failures", "0.5"),
        ("--keep_models", "false"),
        ("--baseline", "kd"),
    ],
)
def test_what_changes_no_number_changes_no_key(words: tuple[str, str], recipe: Path):
    before = stage_keys(read_recipe(recipe))
    assert changed(recipe, before, *words) == set()
