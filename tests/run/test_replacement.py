"""A folder with another run in it: said before it is done, and what was finished is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from pipeline import Finished, digest, read_json, untimed
from tdistill import cli
from tdistill.errors import TdistillError
from tdistill.models.language_model import save
from tdistill.recipe import read_recipe
from tdistill.run import Run, run_recipe
from tdistill.run.folders import resolved_recipe
from tdistill.run.keys import stage_keys
from tdistill.run.replacement import replacement
from tiny import tiny_lm


@pytest.fixture
def out(finished: Finished, tmp_path: Path) -> Path:
    return shutil.copytree(finished.folder, tmp_path / "out")


def test_what_is_made_again_is_said_with_the_reason_and_kept(finished: Finished, out: Path):
    lines: list[str] = []
    recipe = read_recipe(finished.recipe, ["--objectives.kd.discount", "0.5"])
    run_recipe(recipe, out, lines.append)
    assert lines[0].startswith("distils teacher into 2 of its layers: samples 2 responses to each")
    assert lines[1] == (
        f"  {out} holds another run: objectives.kd.discount: 0.99 before, 0.5 now\n"
        "  made again: kd; evaluate-kd; what was finished before is kept in "
        f"{out / 'replaced'} until the next change"
    )
    assert digest(out / "replaced/models") == {
        f"kd/{name}": content for name, content in digest(finished.folder / "models/kd").items()
    }
    for name in ("metrics.json", "report.html", "recipe.resolved.yaml", "stages/kd.json"):
        assert (out / "replaced" / name).read_bytes() == (finished.folder / name).read_bytes()
    assert read_json(out / "metrics.json")["recipe"]["objectives"]["kd"]["discount"] == 0.5
    before = digest(out)
    again: list[str] = []
    run_recipe(recipe, out, again.append)
    assert again == [f"{out}: this run is complete; nothing to do, its results follow"]
    assert digest(out) == before


def test_one_generation_is_kept(finished: Finished, out: Path):
    for discount in ("0.5", "0.4"):
        recipe = read_recipe(finished.recipe, ["--objectives.kd.discount", discount])
        Run(recipe, out, lambda line: None).train()
    kept = yaml.safe_load((out / "replaced/recipe.resolved.yaml").read_text())
    assert kept["objectives"]["kd"]["discount"] == 0.5


def test_what_was_only_added_replaces_nothing_but_the_report(finished: Finished, out: Path):
    found = replacement(read_recipe(finished.recipe, ["--seeds", "2"]), out, lambda: None)
    assert found
    assert found.again == ()
    assert "made again: the report" in found.text()
    assert not replacement(read_recipe(finished.recipe), out, lambda: None)


def test_the_evidence_of_another_teacher_is_moved_away(finished: Finished, out: Path):
    teacher = tiny_lm("llama", scale=3.0, seed=5)
    save(teacher, out.parent / "other")
    lines: list[str] = []
    recipe = read_recipe(finished.recipe, ["--teacher.path", str(out.parent / "other")])
    Run(recipe, out, lines.append).sample_rollouts()
    assert any("teacher.path" in line and "made again" in line for line in lines)
    assert digest(out / "replaced/cache") == digest(finished.folder / "cache")
    manifests = [read_json(f / "cache/manifest.json") for f in (out, finished.folder)]
    prints = {manifest["identity"]["teacher_fingerprint"] for manifest in manifests}
    assert len(prints) == 2


def test_a_moved_teacher_and_moved_data_are_the_same_run(finished: Finished, out: Path):
    """As is a recipe that lies elsewhere, beside them."""
    world = shutil.copytree(finished.recipe.parent, out.parent / "elsewhere/world")
    (world / "teacher").rename(world / "renamed")
    plain = yaml.safe_load(finished.recipe.read_text())
    plain["teacher"]["path"] = "renamed"
    plain["data"] |= {s: f"../world/{s}.jsonl" for s in ("train", "valid", "test")}
    (world / "recipe.yaml").write_text(yaml.safe_dump(plain))
    recipe = read_recipe(world / "recipe.yaml")
    assert recipe.teacher.path == str(world / "renamed")
    lines: list[str] = []
    run_recipe(recipe, out, lines.append)
    assert lines == [f"{out}: this run is complete; nothing to do, its results follow"]


def test_a_moved_teacher_and_another_setting_sample_nothing_again(finished: Finished, out: Path):
    moved = shutil.copytree(finished.recipe.parent / "teacher", out.parent / "moved")
    options = ["--teacher.path", str(moved), "--objectives.kd.discount", "0.5"]
    lines: list[str] = []
    Run(read_recipe(finished.recipe, options), out, lines.append).train()
    assert "[rollouts] reused" in lines
    assert "[start] reused" in lines
    assert digest(out / "cache") == digest(finished.folder / "cache")
    assert not (out / "replaced/cache").exists()


def test_evidence_of_another_teacher_that_was_not_finished_is_moved_away_too(
    finished: Finished, out: Path
):
    (out / "stages/rollouts.json").unlink()
    save(tiny_lm("llama", scale=3.0, seed=5), out.parent / "other")
    recipe = read_recipe(finished.recipe, ["--teacher.path", str(out.parent / "other")])
    Run(recipe, out, lambda line: None).sample_rollouts()
    assert digest(out / "replaced/cache") == digest(finished.folder / "cache")


def test_weights_that_differ_in_one_number_are_another_teacher(finished: Finished, tmp_path: Path):
    keys = []
    for place in ("a", "b"):
        folder = shutil.copytree(finished.recipe.parent / "teacher", tmp_path / place)
        if place == "b":
            content = bytearray((folder / "model.safetensors").read_bytes())
            content[-1] ^= 1
            (folder / "model.safetensors").write_bytes(content)
        recipe = read_recipe(finished.recipe, ["--teacher.path", str(folder)])
        keys.append(Run(recipe, tmp_path / "out", print).groundwork.keys["teacher"])
    assert keys[0] != keys[1]


def test_an_adapter_is_another_model_when_its_base_is(finished: Finished, tmp_path: Path):
    base = shutil.copytree(finished.recipe.parent / "teacher", tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"task_type": "CAUSAL_LM", "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(2)}, adapter / "adapter_model.safetensors")
    recipe = read_recipe(finished.recipe, ["--teacher.path", str(adapter)])
    first = stage_keys(recipe)["teacher"]
    assert stage_keys(recipe)["teacher"] == first
    save(tiny_lm("llama", scale=3.0, seed=5), base)
    assert stage_keys(recipe)["teacher"] != first


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--data.train", "nowhere.jsonl"], "found nothing at nowhere.jsonl"),
        (["--teacher.path", "./nowhere"], "./nowhere: expected a folder with a model"),
        (
            ["--training.report_to", '["no_such_tracker"]', "--training.steps", "5"],
            "no_such_tracker: expected one of",
        ),
        (["--student.layers", "7"], "from 1 to the teacher's 3, found 7"),
        (["--data.lm_text", "nowhere.txt"], "found nothing at nowhere.txt"),
    ],
)
def test_a_refused_run_writes_nothing(
    finished: Finished, out: Path, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
):
    before = digest(out)
    for folder in (out, out.parent / "fresh"):
        assert cli.main(["run", str(finished.recipe), "--out", str(folder), *options]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert len(error.splitlines()) == 1
    assert digest(out) == before
    assert not (out.parent / "fresh").exists()


def test_all_problems_are_named_at_once(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["run", str(finished.recipe), "--out", str(tmp_path / "out"), "--teacher.path", "./x"]
    words += ["--data.test", "./y.jsonl", "--training.report_to", '["no_such_tracker"]']
    assert cli.main(words) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0] == "error: expected a recipe that can be done, found problems:"
    assert [line.split(":")[0].strip() for line in error[1:]] == ["models", "data", "packages"]


def test_a_damaged_record_of_the_old_run_is_no_obstacle(finished: Finished, out: Path):
    (out / "recipe.resolved.yaml").write_text("{{{")
    assert not replacement(read_recipe(finished.recipe), out, lambda: None)
    (out / "recipe.resolved.yaml").write_text(json.dumps([1]))
    assert replacement(read_recipe(finished.recipe), out, lambda: None).again == ()


@pytest.mark.slow
def test_paths_of_the_command_line_are_found_again_from_any_folder(
    finished: Finished, out: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are those of the folder in which it was typed, and what reads the run is in another."""
    world = finished.recipe.parent
    monkeypatch.chdir(world)
    named = read_recipe(finished.recipe).data.test
    words = ["--data.test", Path(named).relative_to(world).as_posix(), "--evaluation.samples", "3"]
    lines: list[str] = []
    run_recipe(read_recipe(finished.recipe, words), out, lines.append)
    assert not any(f"{named} before" in line or "data.test" in line for line in lines)
    monkeypatch.chdir("/")
    assert read_recipe(resolved_recipe(out)).data.test == named


@pytest.mark.parametrize("label", ["start", "kd"])
def test_a_model_whose_weights_were_deleted_is_made_again(
    label: str, finished: Finished, out: Path
):
    students = Run(read_recipe(finished.recipe), out, print).seeds[0]
    assert students.trained(label)
    (out / "models" / label / "model.safetensors").unlink()
    students = Run(read_recipe(finished.recipe), out, print).seeds[0]
    assert not students.trained(label)


def test_other_test_prompts_train_nothing_again(finished: Finished, out: Path):
    world, before = finished.recipe.parent, digest(out / "models")
    words = ["--data.test", str(world / "valid.jsonl"), "--data.valid", "null"]
    recipe = read_recipe(finished.recipe, [*words, "--evaluation.seeds", "1"])
    run = Run(recipe, out, print)
    run.evaluate()
    assert digest(out / "models") == before
    prompts = [e.prompt for e in run.groundwork.load_examples()["test"]]
    assert len(prompts) == 4
    with pytest.raises(TdistillError, match="found nothing at"):
        Run(read_recipe(finished.recipe, ["--data.test", "./no.jsonl"]), out, print).begin()


def test_a_damaged_result_is_made_again(finished: Finished, out: Path):
    (out / "metrics.json").write_text('{"format"')
    lines: list[str] = []
    run_recipe(read_recipe(finished.recipe), out, lines.append)
    made = untimed(read_json(out / "metrics.json"))
    assert made == untimed(finished.metrics)
    assert "[report]" in lines
    assert not any(line.startswith("[kd]") and "reused" not in line for line in lines)
