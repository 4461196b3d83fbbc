"""Plans: what follows from a recipe, and how it is told."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import Finished, write_world
from tdistill import cli
from tdistill.planning import memory
from tdistill.planning.formulas import shares
from tdistill.planning.memory import training_memory
from tdistill.planning.networks import Network
from tdistill.planning.plan import Plan, job_of, make_plan, timed
from tdistill.planning.scale import Known
from tdistill.planning.text import WIDTH, plan_text
from tdistill.planning.work import Work
from tdistill.recipe import read_recipe
from tdistill.run.outlook import known_of, outlook
from tdistill.training.objectives import KD, BellmanDistill
from tiny import tiny_lm


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations as numbers of tokens, without a trace."""

    def tokens(network: Network, rows: int, length: int, **options: Any) -> float:
        return float(rows * length)

    for name in ("update_bytes", "reading_bytes"):
        monkeypatch.setattr(memory, name, tokens)


def planned(path: Path, known: Known = Known(), processes: int = 1, *words: str) -> Plan:  # noqa: B008
    job = job_of(read_recipe(path, words), known, device="h100", processes=processes)
    return make_plan(job, known)


@pytest.mark.usefixtures("untraced")
def test_the_numbers_of_a_recipe(tmp_path: Path) -> None:
    plan = planned(write_world(tmp_path, training={"steps": 10, "batch_size": 4}))
    scale = plan.job.scale
    assert (scale.prompts, scale.test_prompts, scale.valid_prompts) == (9, 6, 4)
    assert scale.origins["prompts"] == "counted"
    assert (scale.response_tokens, scale.prompt_tokens) == (8.0, 128.0)
    work = {s.work.stage: s.work for s in plan.stages}
    assert list(work) == [
        *("rollouts", "held-out", "student", "start", "sft", "seqkd", "kd", "bellman_distill"),
        *(f"evaluate-{x}" for x in ("teacher", "start", "sft", "seqkd", "kd", "bellman_distill")),
    ]
    assert work["rollouts"].tokens == 9 * 2 * 8
    assert work["held-out"].tokens == 6 * 8
    assert work["kd"].tokens == 10 * 4 * (128 + 8)
    assert work["evaluate-kd"].tokens == (1 + 2 + 2) * 6 * 8  # greedy once, two seeds of the others
    assert work["evaluate-start"].tokens == (5 * 6 + 1 * 2 * 4) * 8  # and one temperature on valid
    assert plan.plain()["parameters"]["teacher"] == tiny_lm("llama").num_parameters


@pytest.mark.usefixtures("untraced")
def test_parts_of_training_and_how_they_are_shared(tmp_path: Path) -> None:
    recipe = read_recipe(write_world(tmp_path))
    job = job_of(recipe, Known(), device="h100")
    weights = 4 * job.student.parameters
    alone = training_memory(job, recipe.training, KD())
    assert (alone.weights, alone.gradients, alone.moments) == (weights, weights, 2 * weights)
    rows, length = 4, 256 + 8 - 1
    # One pass an update: gradients take the place of the activations that they come from.
    assert alone.activations == max(0, rows * length - weights)
    many = replace(recipe.training, gradient_accumulation=2)
    assert training_memory(job, many, KD()).activations == rows * length / 2
    target = training_memory(job, recipe.training, BellmanDistill(successor="target"))
    assert target.weights == 2 * weights
    two = replace(job, processes=2)
    ddp = training_memory(two, recipe.training, KD(), "DDP")
    sharded = training_memory(two, recipe.training, KD(), "FSDP2")
    assert (ddp.gradients, ddp.moments) == (2 * weights, 2 * weights)
    assert (sharded.gradients, sharded.moments) == (weights / 2, weights)
    assert ddp.activations == sharded.activations == rows / 2 * length
    for way in ("DDP", "ZeRO-2", "ZeRO-3", "FSDP2"):
        assert all(0 < part <= 2 for part in shares(way, 2))


@pytest.mark.usefixtures("untraced")
def test_lora_has_the_moments_of_its_matrices_alone(tmp_path: Path) -> None:
    recipe = read_recipe(write_world(tmp_path), ["--training.lora.rank", "4"])
    job = job_of(recipe, Known(), device="h100")
    sides = 2 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 32))  # q, o; k, v; gate, up, down
    assert sum(job.student.sides) == sides
    assert training_memory(job, recipe.training, KD()).moments == 8 * 4 * sides


@pytest.mark.usefixtures("untraced")
def test_a_text_fits_the_terminal_and_adds_up(tmp_path: Path) -> None:
    plan = planned(write_world(tmp_path), Known(prompts=1e6), 2)
    text = plan_text(plan)
    assert max(map(len, text.splitlines())) <= WIDTH
    for said in ("1,000,000   stated", "DDP", "FSDP2", "--set-size", "Rates are assumed"):
        assert said in text
    assert "NO" not in text
    told = plan.plain()
    for name, parts in told["memory"].items():
        assert parts["total"] == pytest.approx(sum(v for k, v in parts.items() if k != "total"))
        assert told["fits"][name]
    assert told["seconds"] == pytest.approx(sum(s["seconds"] for s in told["stages"]))
    small = replace(plan.job, device=replace(plan.job.device, memory=1e3))
    assert plan_text(make_plan(small, Known())).count("NO") >= 5


def test_rates_stated_measured_and_assumed() -> None:
    work = [
        Work("rollouts", "sampling", 100.0, 10.0),
        Work("kd", "training", 100.0, 10.0),
        Work("jsd", "training", 300.0, 30.0),
        Work("jsd", "training", 300.0, 30.0, seed=1),
        Work("evaluate-kd", "judging", 100.0, 10.0),
    ]
    known = Known(seconds={"kd": 5.0, "seed-1/jsd": 25.0}, rates={"judging": 4.0})
    found = [(t.seconds, t.origin) for t in timed(work, known)]
    assert found == [
        (10.0, "assumed"),
        (5.0, "done"),
        (pytest.approx(30.0 * 30.0 / 40.0), "measured"),
        (25.0, "done"),
        (25.0, "stated"),
    ]


def test_what_a_folder_knows_counts_before_what_is_assumed(finished: Finished) -> None:
    recipe = read_recipe(finished.recipe)
    known = known_of(recipe, finished.folder)
    manifest = json.loads((finished.folder / "cache" / "manifest.json").read_text())
    steps = manifest["counts"]["steps"]
    assert known.set_size == sum(s["members"] for s in manifest["shards"]) / steps
    assert known.response_tokens == steps / manifest["counts"]["rows"]
    assert known.prompts == 9
    assert {"rollouts", "student", "kd", "evaluate-teacher"} <= known.seconds.keys()
    assert outlook(recipe, finished.folder) == ""  # nothing is left
    new = outlook(recipe, finished.folder / "new")
    assert re.fullmatch(r"about [\d.]+ s at the rates assumed of a \S+", new)


def test_bytes_of_a_cache_are_those_that_were_written(finished: Finished, untraced: None) -> None:
    recipe = read_recipe(finished.recipe)
    known = replace(known_of(recipe, finished.folder), step_bytes=None, prompt_tokens=3.5)
    plan = make_plan(job_of(recipe, known), known)
    written = sum(p.stat().st_size for p in (finished.folder / "cache").glob("*.arrow"))
    assert plan.cache_bytes == pytest.approx(written, rel=0.2)


@pytest.mark.usefixtures("untraced")
def test_the_pace_of_a_server_is_not_that_of_the_device(tmp_path: Path) -> None:
    path = write_world(tmp_path, teacher={"path": "teacher", "backend": "server"})
    plan, here = planned(path), planned(path, Known(), 1, "--teacher.backend", "transformers")
    seconds = {s.work.stage: s.seconds for s in plan.stages}
    known = {s.work.stage: s.seconds for s in here.stages}
    unknown = {s.work.stage for s in plan.stages if s.origin == "unknown"}
    assert unknown == {"rollouts", "held-out", "evaluate-teacher"}
    assert seconds["kd"] == known["kd"] > 0
    assert 0 < seconds["evaluate-kd"] < known["evaluate-kd"]
    assert "The teacher is on other machines" in plan_text(plan)
    assert "--rate\nsampling=N" in plan_text(plan) and "--rate\nsampling=N" not in plan_text(here)
    stated = planned(path, Known(rates={"sampling": 10.0})).stages
    assert {s.work.stage: s.seconds for s in stated}["rollouts"] == 9 * 2 * 8 / 10.0
    took = planned(path, Known(seconds={"rollouts": 36.0})).stages  # 144 tokens
    assert {s.work.stage: s.seconds for s in took}["held-out"] == pytest.approx(6 * 8 / 4.0)
    judged = planned(path, Known(seconds={"evaluate-teacher": 50.0})).stages  # by the server
    assert {s.work.stage: s.seconds for s in judged}["evaluate-kd"] == seconds["evaluate-kd"]


@pytest.mark.usefixtures("untraced")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(write_world(tmp_path))
    words = ["--device", "a100", "--devices", "2", "--set-size=7", "--out", str(tmp_path / "no")]
    assert cli.main(["plan", recipe, *words, "--rate", "training=1e3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["devices"], told["device"]["name"]) == (2, "a100")
    assert told["scale"]["set_size"] == 7.0
    trained = [s for s in told["stages"] if s["kind"] == "training"]
    assert all(s["seconds"] == s["tokens"] / 1e3 and s["rate"] == "stated" for s in trained)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--device", "h10"], "--device: expected one of cpu, t4"),
        (["--devices", "3"], "batch_size: expected a multiple of processes"),
        (["--devices", "0"], "--devices: expected a number above 0, found 0"),
        (["--prompts", "many"], "--prompts: expected a number, found many"),
        (["--rate", "speed=3"], "--rate: expected KIND=N with KIND of sampling"),
        (["--teacher.path", "nowhere"], "nowhere: expected a folder with a model"),
        (["--student.layers", "9"], "layers: expected from 1 to the teacher's 3, found 9"),
        (["--data.train", "nowhere.jsonl"], "found nothing at nowhere.jsonl"),
    ],
)
def test_what_cannot_be_planned_is_one_error(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", str(write_world(tmp_path)), *words]) == 2
    assert text in capsys.readouterr().err


def test_models_that_the_run_makes_cannot_be_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = Path(__file__).parents[2] / "studies" / "two-ways.yaml"
    assert cli.main(["plan", str(recipe)]) == 2
    told = capsys.readouterr().err
    assert "teacher.path: expected a model whose configuration can be read" in told
    assert "name a folder with a config.json" in told


def test_the_unmade_world_has_no_outlook(tmp_path: Path) -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "studies" / "two-ways.yaml")
    assert outlook(recipe, tmp_path) == ""
