"""A whole run in several processes: what it makes, how it ends, and how it goes on."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from launching import Launch, launched
from pipeline import Finished, digest, finish, read_json, untimed, write_world

pytestmark = pytest.mark.slow

OBJECTIVES = {"seqkd": {}, "kd": {"student_share": 0.5}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run of one process, with student rows and a live teacher."""
    return finish(tmp_path_factory.mktemp("alone"), objectives=OBJECTIVES, distilled="kd")


@pytest.fixture(scope="module")
def together(alone: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same run of two, never interrupted: its folder, and what it said."""
    out = tmp_path_factory.mktemp("together") / "out"
    return out, launched(command(alone, out))


def command(run: Finished, out: Path, *more: str) -> list[object]:
    return ["-m", "tdistill", "run", run.recipe, "--out", out, *more]


def assert_same_run(found: Path, expected: Path) -> None:
    """Caches bit for bit, models and curves up to the order in which processes add."""
    for name in ("cache", "cache-test"):
        assert digest(found / name) == digest(expected / name)
    models = [path.relative_to(expected) for path in expected.rglob("model.safetensors")]
    assert len(models) == 5
    for path in models:
        weights = load_file(expected / path)
        for name, weight in load_file(found / path).items():
            assert (weight - weights[name]).abs().max() < 1e-6, (path, name)
    ours, theirs = (read_json(folder / "metrics.json") for folder in (found, expected))
    for label in ("start", *OBJECTIVES):
        mean, expected_mean = (m["curves"][label]["mean"] for m in (ours, theirs))
        for name in ("loss", "grad_norm", "step_loss"):
            assert mean[name] == pytest.approx(expected_mean[name], rel=1e-4)
    assert ours["recipe"] == theirs["recipe"]


def test_it_goes_from_a_fresh_folder_to_the_report(
    alone: Finished, together: tuple[Path, str]
) -> None:
    out, said = together
    assert said.count("2 processes train together; all else is done by the first") == 1
    for stage in ("rollouts", "student", "start", "seqkd", "kd", "evaluate-kd", "report"):
        assert said.count(f"[{stage}] done") == 1
    assert said.count("report:  ") == 1
    assert "Warning" not in said
    assert_same_run(out, alone.folder)
    names = {path.name for path in alone.folder.iterdir()}
    assert {path.name for path in out.iterdir()} == names
    assert not any((out / "checkpoints").iterdir())
    assert not list(out.rglob(".*.partial"))
    again = launched(command(alone, out))
    assert "this run is complete; nothing to do" in again
    assert again.count("report:  ") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_any_process_may_be_killed_at_any_moment(
    rank: int, alone: Finished, together: tuple[Path, str], tmp_path: Path
) -> None:
    out, chance = tmp_path / "out", random.Random(rank)
    moments = [out / "cache", out / "checkpoints/start", out / "checkpoints/kd/checkpoint-2"]
    for moment in [*moments, out / "stages/evaluate-teacher.json"]:
        run = Launch(command(alone, out))
        run.wait_for(moment)
        time.sleep(chance.uniform(0.0, 0.5))
        run.kill_rank(rank)
        code, said = run.finish()
        assert code == 1, said
        assert f"rank      : {rank} (local_rank: {rank})" in said
        assert "exitcode  : -9" in said
    launched(command(alone, out))
    assert_same_run(out, together[0])
    assert untimed(read_json(out / "metrics.json"))["scores"]
    assert not any((out / "checkpoints").iterdir())


def test_a_refused_run_ends_all_processes_and_writes_nothing(
    alone: Finished, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = command(alone, out, "--training.batch_size", "5")
    code, said = Launch(words).finish()
    assert code == 1  # that of torchrun; each process ends with 2
    expected = (
        "error: training.batch_size: expected a multiple of processes x gradient_accumulation = "
        "2 x 1, so 4 or 6, found 5"
    )
    assert said.count(expected) == 1
    assert said.count("error: ") == said.count(expected)
    assert "exitcode  : 2" in said
    assert not out.exists()


MINE = '''
"""An objective that fails, in one process or in all."""
import os
from dataclasses import dataclass
from typing import ClassVar
from tdistill.training.objectives import SeqKD

@dataclass(frozen=True)
class Mine(SeqKD):
    name: ClassVar[str] = "mine"
    ranks: tuple[int, ...] = ()

    def loss(self, views, batch):
        if views.update == 1 and int(os.environ.get("RANK", "0")) in self.ranks:
            raise ValueError("no more")
        return super().loss(views, batch)
'''


def world_of_mine(folder: Path, ranks: list[int]) -> Finished:
    """A recipe with an objective that fails in processes of some ranks."""
    recipe = write_world(folder / "world")
    (recipe.parent / "mine.py").write_text(MINE)
    plain = yaml.safe_load(recipe.read_text())
    plain["objectives"] = {
        "mine": {"objective": f"{recipe.parent / 'mine.py'}:Mine", "ranks": ranks},
        "kd": {},
    }
    plain |= {"distilled": "kd", "baseline": "kd"}
    recipe.write_text(yaml.safe_dump(plain, sort_keys=False))
    return Finished(recipe, folder / "out")


def test_an_objective_that_fails_in_all_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    run = world_of_mine(tmp_path, [0, 1])
    code, said = Launch(command(run, run.folder)).finish()
    assert code == 1, said
    assert said.count("mine failed (ValueError: no more); the others go on") == 1
    assert "exitcode  : 1" in said
    assert run.metrics["failed"] == {"mine, seed 0": "ValueError: no more"}
    assert "kd" in run.metrics["objectives"]


def test_an_objective_that_fails_in_one_ends_the_run_and_the_cured_one_goes_on(
    tmp_path: Path,
) -> None:
    run = world_of_mine(tmp_path, [1])
    code, said = Launch(command(run, run.folder)).finish()
    assert code == 1, said
    assert "error: process 1: train mine: expected all processes to succeed or all to fail" in said
    assert "process 1 of 2 to fail alone (ValueError: no more)" in said
    assert "ValueError" in (run.folder / "failed/mine-process-1.txt").read_text()
    assert not (run.folder / "models/mine").exists()
    code, said = Launch([*command(run, run.folder), "--objectives.mine.ranks", "[]"]).finish()
    assert code == 0, said
    assert "[start] reused" in said


def test_a_folder_that_others_do_not_share_is_named(alone: Finished, tmp_path: Path) -> None:
    """Two machines, each with a folder of its own: what one of them made the other never sees."""
    shutil.copytree(alone.recipe.parent, tmp_path / "world")
    wrapper = tmp_path / "apart.py"
    wrapper.write_text(
        "import os, sys\n"
        "from tdistill import cli\n"
        "import tdistill.run.stages as stages\n"
        "stages._SEEN_WITHIN = 1.0\n"
        "sys.exit(cli.main([*sys.argv[1:], '--out', sys.argv[2] + '-' + os.environ['RANK']]))\n"
    )
    recipe = tmp_path / "world/recipe.yaml"
    code, said = Launch([wrapper, "run", recipe]).finish()
    assert code == 1, said
    assert "give --out a folder that all machines of the run share" in said
