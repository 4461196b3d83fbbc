"""A run from several training seeds: what it leaves, that all get the same, and how it goes on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import digest, kill_at, read_json, untimed, write_world
from tdistill import cli
from tdistill.evaluation.places import is_of_place
from tdistill.files import locked
from tdistill.recipe import read_recipe
from tdistill.report import Result
from tdistill.run import Run, run_recipe
from tdistill.run.folders import seed_folder
from tdistill.run.pipeline import Task

pytestmark = pytest.mark.usefixtures("plain_pages")

LABELS = ("seqkd", "kd")
SEEDS = 2


@dataclass(frozen=True)
class World:
    """A recipe of two objectives and two seeds, and a run of it that was never interrupted."""

    recipe: Path
    folder: Path

    def words(self, out: Path, *more: str) -> list[str]:
        return ["run", str(self.recipe), "--out", str(out), *more]

    def run(self, out: Path, lines: list[str], *overrides: str) -> Run:
        return Run(read_recipe(self.recipe, overrides), out, lines.append)

    def finish(self, out: Path, lines: list[str], *overrides: str) -> Result:
        return run_recipe(read_recipe(self.recipe, overrides), out, lines.append)

    def copy(self, out: Path) -> Path:
        shutil.copytree(self.folder, out)
        return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("seeds")
    recipe = write_world(folder / "world")
    plain = yaml.safe_load(recipe.read_text())
    plain |= {"objectives": {label: {} for label in LABELS}, "distilled": "kd", "seeds": SEEDS}
    recipe.write_text(yaml.safe_dump(plain, sort_keys=False))
    world = World(recipe, folder / "out")
    assert cli.main(world.words(world.folder)) == 0
    return world


def timeless(out: Path) -> Any:
    """``metrics.json`` without what the clock decides."""
    return untimed(read_json(out / "metrics.json"))


def weights_of(out: Path) -> dict[str, str]:
    """The student's files but for its card, which tells of all seeds."""
    return {k: v for k, v in digest(out / "student").items() if k != "README.md"}


def redone(lines: list[str]) -> list[str]:
    """The stages that were done, not those reused."""
    return [line for line in lines if line.endswith("]") and "\n" not in line]


def test_it_leaves_what_it_promises(world: World):
    plain = read_json(world.folder / "metrics.json")
    assert (plain["baseline"], plain["distilled"]) == ("seqkd", "kd")
    assert list(plain["objectives"]) == list(LABELS)
    assert plain["seeds"] == {
        "training": [0, 1],
        "start": [0, 1],
        "rollouts": 0,
        "generation": [0, 1],
    }
    counts = {"objectives": 2, "training_seeds": 2, "rollout_rows": 18}
    assert counts.items() <= plain["counts"].items()
    for k in range(SEEDS):
        folder = seed_folder(world.folder, k)
        models = {path.name for path in (folder / "models").iterdir()}
        assert models == {"start", "seqkd", "kd"} | ({"untrained"} if k == 0 else set())
    student = digest(world.folder / "student")
    assert student.pop("README.md")
    assert student == digest(world.folder / "models/kd")
    assert {p.name for p in (world.folder / "seed-1").iterdir()} == {
        "checkpoints",
        "models",
        "stages",
    }
    assert re.findall("<script[^>]*>", (world.folder / "report.html").read_text()) == ["<script>"]


def test_a_finished_run_has_nothing_to_do(world: World, capsys: pytest.CaptureFixture[str]):
    before = digest(world.folder)
    assert cli.main(world.words(world.folder)) == 0
    said = capsys.readouterr().out
    assert "this run is complete; nothing to do" in said
    assert "report.html" in said
    assert digest(world.folder) == before


@pytest.mark.slow
def test_more_seeds_train_only_what_is_missing(world: World, tmp_path: Path):
    """From one seed to two: the first is the run of one seed, and is not done again."""
    out, lines = tmp_path / "out", []
    single = world.finish(out, lines, "--seeds", "1")
    before = digest(out / "models") | weights_of(out)
    lines.clear()
    world.finish(out, lines)
    assert {line.split()[0] for line in redone(lines)} == {"seed-1", "[report]"}
    assert digest(out / "models") | weights_of(out) == before
    assert timeless(out) == timeless(world.folder)
    both = read_json(out / "metrics.json")
    for score, row in zip(single.scores, both["scores"], strict=True):
        known = {name: e.mean for name, e in score.metrics.items() if e}
        # A place in the response that the other seed's responses do not reach has no mean.
        missing = {name for name in known if row["metrics"][name] is None}
        assert all(is_of_place(name) for name in missing)
        both_seeds = known.keys() - missing
        assert {n: known[n] for n in both_seeds} == {
            n: row["metrics"][n]["seeds"][0] for n in both_seeds
        }


def per_prompt(world: World, label: str, decoding: str, metric: str) -> list[tuple[Any, Any]]:
    """Values and weights of every seed, summed over generation seeds."""
    folders = [seed_folder(world.folder, k) for k in range(SEEDS if label != "teacher" else 1)]
    found = []
    for folder in folders:
        record = read_json(folder / f"stages/evaluate-{label}.json")["per_prompt"][decoding][metric]
        values = np.array(record["values"])
        weights = np.ones_like(values) if record["weights"] is None else np.array(record["weights"])
        rows = len(values)
        found.append((values.reshape(rows, -1).sum(1), weights.reshape(rows, -1).sum(1)))
    return found


def drawn_by_hand(runs: list[tuple[Any, Any]], prompts: Any, seeds: Any) -> float:
    value = sum(runs[s][0][p] for s in seeds for p in prompts)
    weight = sum(runs[s][1][p] for s in seeds for p in prompts)
    return value / weight


def estimates(rows: list[Any]) -> dict[tuple[str, str | None, str], Any]:
    return {
        (row["model"], row.get("decoding"), metric): estimate
        for row in rows
        for metric, estimate in row["metrics"].items()
        if estimate is not None
    }


def test_the_numbers_follow_from_the_records_of_every_prompt(world: World):
    plain = read_json(world.folder / "metrics.json")
    found = estimates([*plain["scores"], *plain["imitation"]])
    assert {model for model, _, _ in found} == {"teacher", "start", *LABELS}
    for (model, decoding, metric), score in found.items():
        runs = per_prompt(world, model, decoding or "", metric)
        sums = np.sum([[values.sum(), weights.sum()] for values, weights in runs], axis=0)
        assert score["mean"] == pytest.approx(sums[0] / sums[1])
        assert score["seeds"] == pytest.approx([v.sum() / w.sum() for v, w in runs])
    for less, others in (("kd", "seqkd"), ("seqkd", "kd")):
        gaps = estimates([d for d in plain["differences"] if d["less"] == less])
        assert {model for model, _, _ in gaps} == {"teacher", "start", others}
        for (model, decoding, metric), gap in gaps.items():
            base = "sample" if decoding == "tuned" else decoding
            expected = found[model, decoding, metric]["mean"] - found[less, base, metric]["mean"]
            assert gap["mean"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("place", [("", "forward_kl"), ("sample", "teacher_nll")])
def test_a_paired_interval_draws_prompts_and_seeds_alike_for_both(
    world: World, place: tuple[str, str]
):
    ours, base = (per_prompt(world, label, *place) for label in ("kd", "seqkd"))
    prompts, draws = len(ours[0][0]), 2000
    by_prompt = np.random.default_rng(0).integers(prompts, size=(draws, prompts))
    by_seed = np.random.default_rng((0, 1)).integers(SEEDS, size=(draws, SEEDS))
    pairs = list(zip(by_prompt, by_seed, strict=True))
    gaps = [drawn_by_hand(ours, p, s) - drawn_by_hand(base, p, s) for p, s in pairs]
    plain = read_json(world.folder / "metrics.json")
    gaps_to_base = estimates([d for d in plain["differences"] if d["less"] == "seqkd"])
    found = gaps_to_base["kd", place[0] or None, place[1]]
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(gaps, [0.025, 0.975]))


def test_curves_are_averaged_over_seeds(world: World):
    curve = read_json(world.folder / "metrics.json")["curves"]["kd"]
    folders = [seed_folder(world.folder, k) for k in range(SEEDS)]
    histories = [read_json(folder / "stages/kd.json")["history"] for folder in folders]
    losses = [[entry["loss"] for entry in history] for history in histories]
    assert [seed["loss"] for seed in curve["seeds"]] == losses
    assert curve["mean"]["loss"] == pytest.approx(np.mean(losses, axis=0))
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_every_objective_of_a_seed_gets_the_same(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same rows in the same order from the same start; another seed, other ones."""
    from tdistill.training import train

    seen: dict[tuple[str, int], list[Any]] = {}
    original, collator = train.train_student, train.Collator
    current: list[Any] = []

    class Watched(collator):
        def __call__(self, items: Any) -> Any:
            current.append([(index, row.prompt_ids, row.response_ids) for index, row in items])
            return super().__call__(items)

    def watched(student: Any, objective: Any, rows: Any, config: Any, **options: Any) -> Any:
        start = {n: w.sum().item() for n, w in student.model.named_parameters()}
        current.clear()
        done = original(student, objective, rows, config, **options)
        seen[options["label"], config.seed] = [start, list(rows), list(current)]
        return done

    monkeypatch.setattr(train, "Collator", Watched)
    monkeypatch.setattr(train, "train_student", watched)
    world.finish(tmp_path, [])
    assert set(seen) == {(x, k) for x in ("start", *LABELS) for k in range(SEEDS)}
    for k in range(SEEDS):
        assert seen["kd", k] == seen["seqkd", k]
        assert len(seen["kd", k][2]) >= 4
    (start, rows, order), (other_start, other_rows, other_order) = seen["kd", 0], seen["kd", 1]
    assert rows == other_rows
    assert order != other_order
    assert start != other_start
    assert seen["start", 0][0] == seen["start", 1][0]
    assert timeless(tmp_path) == timeless(world.folder)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_result(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    said = kill_at("after-a-checkpoint", *world.words(out))
    assert "[seqkd] done" in said
    assert said.endswith("[kd]\n")
    assert (out / "checkpoints/kd/checkpoint-2/trainer_state.json").exists()
    assert cli.main(world.words(out)) == 0
    said = capsys.readouterr().out
    assert "train kd, seed 1 of 2; 2 of 6 done, about" in said
    assert "[seqkd]\n" not in said.split("seed-1")[0]
    assert timeless(out) == timeless(world.folder)
    for place in ("cache", "models", "student", "seed-1/models"):
        assert digest(out / place) == digest(world.folder / place)


@pytest.mark.slow
def test_models_that_are_not_kept_go_once_they_are_judged_and_are_not_trained_again(
    world: World, tmp_path: Path
):
    out, lines = world.copy(tmp_path / "out"), []
    shutil.rmtree(out / "seed-1/models/seqkd")
    (out / "report.html").unlink()
    forget = ("--keep_models", "false")
    world.finish(out, lines, *forget)
    assert redone(lines) == ["[report]"]
    lines.clear()
    world.finish(out, lines, *forget, "--seeds", "3")
    stages = [line.split()[-1] for line in redone(lines) if line.startswith("seed-2")]
    assert stages == [s for x in ("start", *LABELS) for s in (f"[{x}]", f"[evaluate-{x}]")]
    assert len(redone(lines)) == len(stages) + 1
    assert {p.name for p in (out / "seed-2/models").iterdir()} == {"start"}
    assert not (out / "seed-2/student").exists()
    assert (out / "student/model.safetensors").exists(), "the student of the run stays"
    lines.clear()
    world.finish(out, lines, *forget, "--seeds", "3")
    assert redone(lines) == []


def test_other_settings_of_an_objective_train_it_alone(world: World, tmp_path: Path):
    out = world.copy(tmp_path / "out")
    words = world.words(out, "--objectives.kd.discount", "0.5", "--baseline", "kd")
    assert cli.main(words) == 0
    for k in range(SEEDS):
        same = [x for x in ("start", *LABELS) if _record(out, k, x) == _record(world.folder, k, x)]
        assert same == ["start", "seqkd"]
    assert read_json(out / "metrics.json")["baseline"] == "kd"


def _record(out: Path, seed: int, label: str) -> bytes:
    return (seed_folder(out, seed) / f"stages/{label}.json").read_bytes()


def test_what_another_process_works_on_is_left_to_it(world: World, tmp_path: Path):
    out = world.copy(tmp_path / "out")
    for label in LABELS:
        (out / f"stages/evaluate-{label}.json").unlink()
    run = world.run(out, [])
    tasks = run._tasks("judge")
    left = [Task("judge", 0, label) for label in LABELS]
    assert run._pending(tasks) == left
    with locked(out / "locks/seed-0-seqkd") as held, locked(out / "locks/seed-0-seqkd") as twice:
        assert (held, twice) == (True, False)
        assert run._do_one(left, len(tasks))
        assert run._pending(tasks) == left[:1]
        assert not run._do_one(left[:1], len(tasks))
    assert run._do_one(left[:1], len(tasks))
    assert run._pending(tasks) == []


@pytest.mark.slow
def test_processes_on_one_folder_share_the_work(world: World, tmp_path: Path):
    """Two at once: every model is made once, by either, and both end with the whole result."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tdistill", *world.words(out)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    done = [line for text in said for line in text.splitlines() if "] done in" in line]
    stages = [line.split("] done")[0] for line in done]
    assert len(stages) == len(set(stages)) == 3 + 1 + 2 * 2 * 3 + 2
    assert timeless(out) == timeless(world.folder)


def failing(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    from tdistill.evaluation import evaluate

    original: Callable[..., Any] = evaluate.judge

    def judge(name: str, *arguments: Any) -> Any:
        if name == label:
            raise RuntimeError("probability tensor contains inf")
        return original(name, *arguments)

    monkeypatch.setattr(evaluate, "judge", judge)


def test_an_objective_that_fails_is_left_out_named_and_tried_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = world.copy(tmp_path / "out")
    for name in ("metrics.json", "seed-1/stages/evaluate-seqkd.json"):
        (out / name).unlink()
    words = world.words(out, "--baseline", "kd")
    with monkeypatch.context() as patch:
        failing(patch, "seqkd")
        assert cli.main(words) == 1
        plain = read_json(out / "metrics.json")
        assert plain["failed"] == {"seqkd, seed 1": "RuntimeError: probability tensor contains inf"}
        assert list(plain["objectives"]) == ["kd"]
        assert "Traceback" in (out / "seed-1/failed/seqkd.txt").read_text()
    assert cli.main(words) == 0
    assert read_json(out / "metrics.json")["failed"] == {}
    assert cli.main(world.words(out)) == 0
    assert timeless(out) == timeless(world.folder)


@pytest.mark.parametrize("lost", [("seqkd", "baseline"), ("kd", "distilled")])
def test_a_run_without_its_baseline_or_its_student_is_an_error_after_the_rest(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lost: tuple[str, str],
):
    label, field = lost
    out = world.copy(tmp_path / "out")
    (out / "metrics.json").unlink()
    for name in LABELS:
        (out / f"seed-1/stages/evaluate-{name}.json").unlink()
    failing(monkeypatch, label)
    assert cli.main(world.words(out)) == 2
    said = capsys.readouterr().err
    assert f"{field}: expected an objective that trains, but {label} failed for seed 1" in said
    other = next(x for x in LABELS if x != label)
    assert (out / f"seed-1/stages/evaluate-{other}.json").exists()
    assert not (out / "metrics.json").exists()
