"""Runs whose teacher is behind a server: its weights are not loaded at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import digest, write_world
from serving import Server, failing, serving, slow
from tdistill import cli
from tdistill.errors import InvalidValueError
from tdistill.evaluation.served import ABSENT
from tdistill.models.language_model import save
from tdistill.recipe import read_recipe
from tdistill.report.result import read_result
from tdistill.run import Run
from tdistill.run.keys import stage_keys
from tdistill.teacher.cache.manifest import read_manifest
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.source import LiveTeacher
from tiny import tiny_lm


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny_lm("llama", scale=3.0)) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A recipe whose teacher has no weights here."""
    recipe = write_world(tmp_path / "world")
    (tmp_path / "world/teacher/model.safetensors").unlink()
    return recipe


def served(server: Server, *more: str) -> list[str]:
    words = ["--teacher.backend", "server", "--teacher.server.url", server.url]
    return [*words, "--teacher.server.first_wait", "0.01", *more]


def test_rollouts_need_no_weights_and_have_the_teachers_evidence(
    server: Server, world: Path, tmp_path: Path
):
    words = [str(world), "--out", str(tmp_path / "out")]
    assert cli.main(["rollouts", *words, *served(server)]) == 0
    cache = Cache(tmp_path / "out/cache")
    rows = cache.rows()
    assert len(rows) == 18
    assert cache.manifest.identity.teacher == "tiny"
    assert not cache.manifest.identity.normaliser
    recipe = read_recipe(world)
    live = LiveTeacher(tiny_lm("llama", scale=3.0), recipe.rollouts.capture)
    found, expected = cache.evidence(rows), live.evidence(rows)
    assert found.sets.ids.tolist() == expected.sets.ids.tolist()
    server.asked.clear()
    assert cli.main(["rollouts", *words, *served(server, "--teacher.server.timeout", "9")]) == 0
    # How long it may take changes nothing that is there: it is looked at, and not sampled.
    assert all(body["max_tokens"] == 1 for body in server.asked)


def test_shares_of_a_served_teacher(server: Server, world: Path, tmp_path: Path):
    recipe = read_recipe(world, served(server))
    Run(recipe, tmp_path / "one", str).sample_rollouts()
    Run(recipe, tmp_path / "one", str).groundwork.sample_held_out()
    words = [str(world), "--out", str(tmp_path / "many"), *served(server)]
    for number in (1, 2):
        assert cli.main(["rollouts", *words, "--shard", f"{number}/2"]) == 0
    assert cli.main(["merge", str(tmp_path / "many")]) == 0
    for name in ("cache", "cache-test"):
        assert digest(tmp_path / "many" / name) == digest(tmp_path / "one" / name)


def test_the_server_is_looked_at_before_anything_is_written(
    world: Path, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
):
    words = ["rollouts", str(world), "--out", str(tmp_path / "out")]
    assert cli.main([*words, *served(server, "--teacher.server.model", "another")]) == 2
    assert "expected a server with the model another, found tiny" in capsys.readouterr().err
    assert cli.main([*words, *served(server, "--rollouts.max_new_tokens", "127")]) == 2
    assert "expected rows of at most 128 tokens, all that tiny takes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_doctor_asks_the_server(
    world: Path, server: Server, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["doctor", str(world), *served(server)]) == 0
    said = capsys.readouterr().out
    assert f"fine      teacher: tiny at {server.url}, 256 tokens listed a step; " in said
    server.faults += [slow(0.5)] * 9
    try:
        options = ("--teacher.server.timeout", "0.1", "--teacher.server.retries", "1")
        assert cli.main(["doctor", str(world), *served(server, *options)]) == 1
    finally:
        server.faults.clear()
    assert "found no answer in 0.1 s at each of 2 tries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ("soft_td", ()),
        ("path_consistency", ()),
        ("iq_learn", ("--objectives.new.centre", "teacher")),
    ],
)
def test_objectives_that_read_the_normaliser_are_refused_with_the_cure(
    server: Server, world: Path, objective: str, more: tuple[str, ...]
):
    words = served(server, "--objectives.new.objective", objective, *more)
    with pytest.raises(
        InvalidValueError,
        match=f"objectives.new: expected the teacher's log-normalisers, which {objective} reads "
        "under shift: raw; found none with teacher.backend: server; set shift to set-max or",
    ):
        read_recipe(world, words)
    recipe = read_recipe(world, [*words, "--objectives.new.shift", "set-max"])
    assert not recipe.objectives["new"].reads_normaliser
    assert read_recipe(world, words[6:]).objectives["new"].reads_normaliser


def test_what_a_server_cannot_give_is_refused(server: Server, world: Path):
    for words, text in (
        (
            ["--rollouts.capture.tail_samples", "4"],
            r"tail_samples: expected 0 with teacher.backend",
        ),
        (["--rollouts.capture.max_set_size", "null"], r"max_set_size: expected a number with"),
        (["--teacher.gguf_file", "t.gguf"], r"gguf_file: expected none with backend: server"),
        (["--teacher.listed_tokens", "0"], r"listed_tokens: expected at least 1"),
    ):
        with pytest.raises(InvalidValueError, match=text):
            read_recipe(world, served(server, *words))


def test_keys_hold_whose_responses_they_are_not_where_the_server_is(server: Server, world: Path):
    first = stage_keys(read_recipe(world, served(server)))
    for words in (["url", "http://elsewhere:1"], ["concurrency", "3"], ["retries", "9"]):
        more = [f"--teacher.server.{words[0]}", words[1]]
        assert stage_keys(read_recipe(world, served(server, *more))) == first
    for more in (["--teacher.server.model", "x"], ["--teacher.listed_tokens", "40"]):
        other = stage_keys(read_recipe(world, served(server, *more)))
        assert other["rollouts"] != first["rollouts"]
    assert stage_keys(read_recipe(world))["rollouts"] != first["rollouts"]


def test_a_cache_without_normalisers_refuses_what_reads_them(
    server: Server, world: Path, tmp_path: Path
):
    Run(read_recipe(world, served(server)), tmp_path / "one", str).sample_rollouts()
    assert not read_manifest(tmp_path / "one/cache").identity.normaliser
    words = ["--rollouts.cache", str(tmp_path / "one"), "--objectives.new.objective", "soft_td"]
    with pytest.raises(InvalidValueError, match=r"found none in .*one/cache; set shift to set-max"):
        Run(read_recipe(world, words), tmp_path / "two", str).groundwork.find_given()


def test_rows_that_are_read_must_fit_with_a_token_more(
    world: Path, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
):
    words = ["rollouts", str(world), "--out", str(tmp_path / "out"), *served(server)]
    longest = ["--evaluation.max_new_tokens", "128"]
    assert cli.main([*words, *longest]) == 2
    said = capsys.readouterr().err
    assert "evaluation.max_new_tokens: expected rows of at most 128 tokens, all that tiny" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def student(world: Path) -> list[str]:
    """A student of its own, since the teacher's layers are not here."""
    save(tiny_lm("llama", num_hidden_layers=2), world.parent / "student")
    return ["--student.path", str(world.parent / "student"), "--student.layers", "null"]


@pytest.mark.slow
def test_a_whole_run_without_the_teachers_weights(
    server: Server, world: Path, student: list[str], tmp_path: Path
):
    """Against the same run judged by the weights, whose teacher samples what the server samples."""
    out, local = tmp_path / "out", tmp_path / "local"
    words = ["run", str(world), *student, *served(server), "--evaluation.sweep.temperatures"]
    words += ["[0.5, 1.0]", "--evaluation.sweep.seeds", "1", "--evaluation.sweep.levels", "1"]
    assert cli.main([*words, "--out", str(out)]) == 0
    assert (out / "student/model.safetensors").exists()
    save(tiny_lm("llama", scale=3.0), world.parent / "teacher")
    assert cli.main([*words, "--out", str(local), "--evaluation.teacher", "local"]) == 0
    found, whole = read_result(out / "metrics.json"), read_result(local / "metrics.json")
    assert set(found.absent) == set(ABSENT) and not whole.absent
    assert "What was not measured" in (out / "report.html").read_text()
    assert not (out / "unfinished/evaluation").exists()
    for label in found.models:
        for metric, decoding, off in (
            ("teacher_nll", "greedy", 0.01),
            ("rouge_l", "greedy", 1e-9),
            ("response_tokens", "greedy", 1e-9),
            ("leak", None, 0.005),
            ("set_kl", None, 0.005),
        ):
            ours, theirs = (r.estimate(label, metric, decoding) for r in (found, whole))
            assert ours is not None and theirs is not None
            assert ours.mean == pytest.approx(theirs.mean, abs=off), (label, metric)
        assert found.estimate(label, "forward_kl", None) is None
        less, more = (
            found.estimate(label, "kl_with_rest", None),
            whole.estimate(label, "forward_kl", None),
        )
        assert less is not None and more is not None and less.mean < more.mean + 0.005
    assert {x: len(points) for x, points in found.sweep.items()} == dict.fromkeys(found.models, 2)


@pytest.mark.slow
def test_a_server_that_goes_while_models_are_judged_ends_the_run_and_it_goes_on(
    server: Server,
    world: Path,
    student: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    words = ["run", str(world), *student, *served(server), "--teacher.server.retries", "0"]
    words += ["--out", str(tmp_path / "out")]
    assert cli.main(["train", *words[1:]]) == 0
    server.faults += [lambda request: None] * 12 + [failing(500)] * 90
    try:
        assert cli.main(words) == 2
    finally:
        server.faults.clear()
    said = capsys.readouterr()
    assert "found status 500" in said.err
    assert "the others go on" not in said.out
    assert list((tmp_path / "out/unfinished/evaluation").iterdir())
    assert cli.main(words) == 0
    assert not (tmp_path / "out/unfinished/evaluation").exists()
