"""Runs whose teacher responses are there already: shared out before, in a cache, in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import Finished, digest, prompt, read_json, untimed
from tdistill import cli
from tdistill.errors import CacheError, DataError
from tdistill.recipe import read_recipe
from tdistill.run import Run
from tdistill.teacher import rollouts
from tdistill.teacher.cache.manifest import read_manifest
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.shares import Share


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is sampled by nobody."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("the teacher was sampled")

    monkeypatch.setattr(rollouts, "sample_unit", refuse)


def run_of(finished: Finished, out: Path, *words: str) -> Run:
    return Run(read_recipe(finished.recipe, words), out, lambda line: None)


def share_out(finished: Finished, out: Path, count: int) -> None:
    for number in range(1, count + 1):
        run_of(finished, out).sample_share(Share(number, count))
    assert cli.main(["merge", str(out)]) == 0


def test_shares_of_a_run_are_its_caches_and_nothing_is_sampled_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    share_out(finished, out, 2)
    for name in ("cache", "cache-test"):
        assert digest(out / name) == digest(finished.folder / name), name
    assert not (out / "stages").exists()  # nobody has done a stage of the run

    def refuse(*_: Any) -> Any:
        raise AssertionError("the teacher was sampled")

    monkeypatch.setattr(rollouts, "sample_unit", refuse)
    ground = run_of(finished, out).groundwork
    assert len(ground.sample_rollouts()) == 18
    expected = run_of(finished, finished.folder).groundwork
    assert ground.sample_held_out() == expected.sample_held_out()


def test_a_share_by_the_command_line(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["rollouts", str(finished.recipe), "--out", str(tmp_path / "out"), "--shard", "2/3"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "share 2/3 done; when all 3 are there: tdistill merge" in said
    assert read_manifest(tmp_path / "out/cache-2-of-3").rows == 8  # the second of three units
    assert not (tmp_path / "out/cache").exists()


@pytest.mark.usefixtures("unasked")
def test_the_cache_of_another_run_is_linked_and_its_responses_are_these(
    finished: Finished, tmp_path: Path
):
    out = tmp_path / "out"
    ground = run_of(finished, out, "--rollouts.cache", str(finished.folder)).groundwork
    expected = run_of(finished, finished.folder).groundwork
    assert ground.sample_rollouts() == expected.sample_rollouts()
    assert ground.sample_held_out() == expected.sample_held_out()
    for name in ("cache", "cache-test"):
        assert digest(out / name) == digest(finished.folder / name), name
    for shard in (finished.folder / "cache").glob("*.arrow"):
        assert shard.samefile(out / "cache" / shard.name)


@pytest.mark.slow
@pytest.mark.usefixtures("unasked")
def test_a_run_from_the_cache_of_another_run(finished: Finished, tmp_path: Path):
    """The same evidence, so the same students and numbers, to the last bit."""
    out = tmp_path / "out"
    words = ["--rollouts.cache", str(finished.folder)]
    assert cli.main(["run", str(finished.recipe), "--out", str(out), *words]) == 0
    for name in ("cache", "cache-test", "models", "student"):
        assert digest(out / name) == digest(finished.folder / name), name
    metrics, expected = untimed(read_json(out / "metrics.json")), untimed(finished.metrics)
    assert metrics["recipe"]["rollouts"].pop("cache") == str(finished.folder)
    assert expected["recipe"]["rollouts"].pop("cache") is None
    assert metrics == expected


@pytest.mark.usefixtures("unasked")
def test_without_responses_to_the_test_its_references_are_judged_on(
    finished: Finished, tmp_path: Path
):
    cache = finished.folder / "cache"
    ground = run_of(finished, tmp_path / "out", "--rollouts.cache", str(cache)).groundwork
    assert len(ground.sample_rollouts()) == 18
    examples = ground.load_examples()["test"]
    assert [row.response_ids for row in ground.sample_held_out()] == [
        e.reference_ids for e in examples
    ]
    assert {row.prompt_ids for row in ground.open_cache("test").rows()} == {
        e.prompt_ids for e in examples
    }


def test_a_cache_captured_otherwise_is_refused_before_any_work(finished: Finished, tmp_path: Path):
    words = ["--rollouts.cache", str(finished.folder), "--rollouts.capture.captured_top_p", "0.95"]
    with pytest.raises(CacheError, match=r"write rollouts.capture: \{captured_top_p: 0.9\} into"):
        run_of(finished, tmp_path / "out", *words).begin()
    assert not (tmp_path / "out").exists()
    with pytest.raises(CacheError, match="expected a teacher cache or the folder of a run"):
        run_of(finished, tmp_path / "out", "--rollouts.cache", str(tmp_path)).begin()


def write_responses(path: Path, prompts: list[str]) -> str:
    rows = [{"prompt": p, "completion": [" k l", " m"]} for p in prompts]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.usefixtures("unasked")
def test_a_run_from_given_responses_reads_them_once(finished: Finished, tmp_path: Path):
    """Those to test prompts are held out, those to validation prompts are not used."""
    prompts = [*(prompt(i, 1) for i in range(5)), *(prompt(i, 3) for i in range(2)), prompt(0, 14)]
    data = write_responses(tmp_path / "responses.jsonl", prompts)
    run = run_of(finished, tmp_path / "out", "--rollouts.responses", data)
    ground = run.groundwork
    test = {e.prompt_ids for e in ground.load_examples()["test"]}
    valid = {e.prompt_ids for e in ground.load_examples()["valid"]}
    run.sample_rollouts()
    rows = ground.sample_rollouts()
    seen = {row.prompt_ids for row in rows}
    assert len(rows) >= 2 * len(seen) > 6
    assert not seen & (test | valid)
    held_out = ground.sample_held_out()
    assert {row.prompt_ids for row in held_out} < test
    assert len(held_out) == len({row.prompt_ids for row in held_out})  # one a prompt is asked for
    cache = Cache(tmp_path / "out/cache")
    assert cache.rows(source="score") == cache.rows()
    assert set(cache.rows()) == set(rows)
    assert len(ground.open_cache("train").evidence(rows).sets) == sum(
        len(row.response_ids) for row in rows
    )


def test_responses_to_test_prompts_alone_are_refused(finished: Finished, tmp_path: Path):
    data = write_responses(tmp_path / "responses.jsonl", [prompt(0, 3)])
    run = run_of(finished, tmp_path / "out", "--rollouts.responses", data)
    with pytest.raises(
        DataError, match=r"rollouts.responses: expected responses to train on, found"
    ):
        run.begin()
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_samples_nothing_has_no_shares(finished: Finished, tmp_path: Path):
    words = [str(finished.recipe), "--rollouts.cache", str(finished.folder), "--shard", "1/2"]
    assert cli.main(["rollouts", *words, "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out/cache").exists()


def test_paths_are_those_of_the_recipes_folder(finished: Finished, tmp_path: Path):
    text = finished.recipe.read_text().replace("rollouts:\n", "rollouts:\n  cache: ../shared\n")
    recipe = tmp_path / "folder" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text(text)
    assert read_recipe(recipe).rollouts.cache == str(tmp_path / "shared")
