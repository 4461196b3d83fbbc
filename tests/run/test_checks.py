"""What is looked at before work is spent, by the doctor and by every run."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline import Finished, digest
from tdistill import cli
from tdistill.errors import InvalidValueError, StorageError
from tdistill.recipe import read_recipe
from tdistill.run import Run, checks
from tdistill.run.checks import Doubt, findings, planned_bytes, quick_checks, refuse_wrong
from tdistill.run.groundwork import Groundwork


def test_the_doctor_looks_at_all_parts_and_leaves_nothing(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    before = digest(finished.recipe.parent)
    started = time.process_time()
    assert cli.main(["doctor", str(finished.recipe)]) == 0
    assert time.process_time() - started < 20
    said = capsys.readouterr().out
    parts = re.findall(r"^  (fine|doubtful|wrong) +(\w+): ", said, re.MULTILINE)
    names = ["folder", "models", "data", "packages", "training"]
    names += ["prompts", "teacher", "student", "tasks", "room"]
    assert [name for _, name in parts] == names
    assert {level for level, _ in parts} == {"fine"}
    assert "data doctor: " in said
    assert said.splitlines()[-1] == "10 checks: 0 wrong, 0 doubtful"
    assert list(tmp_path.iterdir()) == []
    assert digest(finished.recipe.parent) == before


def test_the_doctor_names_what_is_doubtful_and_what_will_fail(
    finished: Finished, capsys: pytest.CaptureFixture[str]
):
    words = ["doctor", str(finished.recipe), "--training.warmup_steps", "3"]
    assert cli.main([*words, "--data.test", "./no.jsonl"]) == 1
    said = capsys.readouterr().out
    doubt = "  doubtful  training: training.warmup_steps: 3 of 4 updates, so the learning rate is"
    assert doubt in said
    assert "  wrong     data: data source: expected" in said
    assert said.splitlines()[-1] == "5 checks: 1 wrong, 1 doubtful"


def test_a_run_says_what_is_doubtful_and_goes_on(finished: Finished, tmp_path: Path):
    recipe = read_recipe(finished.recipe, ["--start.training.warmup_steps", "4"])
    lines: list[str] = []
    Run(recipe, tmp_path / "out", lines.append).begin()
    assert lines[0].startswith("distils teacher into 2 of its layers: samples 2 responses to each")
    assert lines[1].startswith("  doubtful: start.training.warmup_steps: 4 of 6 updates, so")
    assert (tmp_path / "out/recipe.resolved.yaml").exists()


@pytest.mark.parametrize("name", ["tensorboard", "none"])
def test_trackers_that_can_be_used_are_fine(finished: Finished, tmp_path: Path, name: str):
    recipe = read_recipe(finished.recipe, ["--training.report_to", f'["{name}"]'])
    refuse_wrong(list(findings(quick_checks(recipe, tmp_path))))


def test_several_problems_are_one_error_and_one_keeps_its_kind():
    def full() -> str:
        raise StorageError("no room")

    def doubtful() -> str:
        raise Doubt("hm")

    def wrong() -> str:
        raise InvalidValueError("no sense")

    with pytest.raises(StorageError, match="no room"):
        refuse_wrong(list(findings({"a": full, "b": doubtful})))
    with pytest.raises(InvalidValueError, match="found problems:\n  a: no room\n  c: no sense"):
        refuse_wrong(list(findings({"a": full, "b": doubtful, "c": wrong})))
    refuse_wrong(list(findings({"b": doubtful})))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--training.report_to", '["no_such"]'], "report_to: no_such: expected one of .*wandb"),
        (["--training.report_to", '["comet_ml"]'], "comet_ml: expected the package of comet_ml to"),
        (
            ["--teacher.gguf_file", "no.gguf"],
            r"teacher.gguf_file: expected a file in .*found no.gg",
        ),
        (
            ["--training.lora.rank", "4", "--teacher.backend", "vllm"],
            "training.lora, teacher.backend: expected the packages peft, vllm to be installed, "
            r"found none: pip install 'tdistill\[peft\]' 'tdistill\[vllm\]'",
        ),
    ],
)
def test_packages_and_files_are_looked_for(
    finished: Finished,
    tmp_path: Path,
    options: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(
        checks, "find_spec", lambda name: None if name in ("peft", "vllm") else name == "gguf"
    )
    recipe = read_recipe(finished.recipe, options)
    with pytest.raises(InvalidValueError, match=text):
        refuse_wrong(list(findings(quick_checks(recipe, tmp_path))))


def test_room_is_asked_for_before_anything_is_sampled(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = read_recipe(finished.recipe)
    ground = Groundwork(recipe, tmp_path, lambda line: None)
    prompts = sum(map(len, ground.load_examples().values()))
    size = ground.load_face().vocabulary_size
    need = planned_bytes(recipe, checks.student_parameters(ground), prompts, size)
    for free, fits in ((need, True), (need - 1, False)):
        monkeypatch.setattr(checks, "free_bytes", lambda place, free=free: free)
        found = list(findings(checks.thorough_checks(ground, tmp_path)))
        assert [f.what for f in found if f.error] == ([] if fits else ["room"])


def test_the_planned_room_is_from_above(finished: Finished):
    """More than the finished run has taken, and of the same order."""
    recipe = read_recipe(finished.recipe)
    ground = Groundwork(recipe, finished.folder, lambda line: None)
    parameters = checks.student_parameters(ground)
    weights = finished.folder / "models/kd/model.safetensors"
    assert 4 * parameters == pytest.approx(weights.stat().st_size, rel=0.2)
    taken = [f.stat().st_size for f in finished.folder.rglob("*.safetensors")]
    taken += [f.stat().st_size for f in finished.folder.rglob("*.arrow")]
    planned = planned_bytes(recipe, parameters, 19, 64)
    assert sum(taken) < planned < 5 * sum(taken)
    fewer = replace(recipe, keep_models=False)
    assert planned_bytes(fewer, parameters, 19, 64) < planned


def test_of_a_world_that_is_not_made_the_doctor_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    study = Path(__file__).parents[2] / "studies" / "two-ways.yaml"
    assert cli.main(["doctor", str(study), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "the world of this recipe is not made: what is in it was not looked at" in said
    assert "models: made by the world first" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_the_doctor_finds_a_row_of_a_model_that_no_trial_reads(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
):
    bad = shutil.copytree(finished.recipe.parent / "teacher", tmp_path / "bad")
    weights = load_file(bad / "model.safetensors")
    weights["lm_head.weight"][7, 2] = float("nan")
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    words = [f"--{part}.path", str(bad), *(["--student.layers", "null"] * (part == "student"))]
    assert cli.main(["doctor", str(finished.recipe), *words]) == 1
    said = capsys.readouterr().out
    assert f"  wrong     {part}: {bad}: expected weights that are numbers, found NaN" in said
    assert "in lm_head.weight in row 7 of 64" in said
