"""The command line as its users meet it: status, streams, speed, refusals."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import Finished, write_rows
from tdistill import __version__, cli
from tdistill.cli import tools
from tdistill.models.language_model import load
from tdistill.teacher.cache.manifest import read_manifest
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.verification import verify_cache
from tdistill.teacher.inspection import inspect_cache

COMMANDS = (
    "plan",
    "demo",
    "init",
    "doctor",
    "run",
    "rollouts",
    "train",
    "evaluate",
    "student",
    "score",
    "inspect",
    "verify",
    "objectives",
    "reward",
    "chat",
    "try",
    "publish",
    "export",
)
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "pyarrow", "numpy", "pandas")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tdistill", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def children() -> float:
    """Processor seconds of child processes so far: what a machine that does nothing else waits."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def least(seconds: Callable[[], float], *, below: float) -> float:
    """The least of up to five times, for a machine that does other work too."""
    times = [seconds()]
    while len(times) < 5 and min(times) >= below:
        times.append(seconds())
    return min(times)


@pytest.mark.parametrize("words", [["--help"], *([c, "--help"] for c in COMMANDS)], ids=" ".join)
def test_help_is_immediate(words: list[str]):
    def seconds() -> float:
        started = children()
        done = command(*words)
        passed = children() - started
        assert (done.returncode, done.stderr) == (0, "")
        assert "usage: tdistill" in done.stdout
        return passed

    assert least(seconds, below=1.0) < 1.0


def test_the_package_is_imported_in_no_time_and_without_torch():
    program = (
        "import sys, time; started = time.perf_counter()\n"
        "import tdistill\n"
        "print(time.perf_counter() - started)\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )

    def seconds() -> float:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        passed, heavy = done.stdout.splitlines()
        assert heavy == "[]"
        return float(passed)

    assert least(seconds, below=0.3) < 0.3


@pytest.mark.parametrize("words", [["--help"], *([c, "--help"] for c in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]):
    program = (
        "import sys; from tdistill.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        f"print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_help_names_every_command_and_field(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"\n  {name} " in usage for name in COMMANDS)
    lines = [line for line in usage.splitlines() if line.startswith("  ")]
    assert len(lines) == len(cli.COMMANDS) and max(map(len, lines)) <= 100  # each in one line
    assert cli.main(["run", "--help"]) == 0
    fields = capsys.readouterr().out
    for path in ("teacher.path", "training.lora.rank", "rollouts.capture.captured_top_p"):
        assert f"--{path}  (" in fields


def test_no_words_and_version(capsys: pytest.CaptureFixture[str]):
    assert cli.main([]) == 0
    assert "usage" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


REFUSED: list[tuple[list[str], list[str]]] = [
    (["--training.stepz", "3"], ["training.stepz: unknown key", "did you mean 'steps'"]),
    (["--trainin.steps", "3"], ["trainin", "did you mean", "training"]),
    (["--training.steps", "three"], ["training.steps: expected an integer", "'three'"]),
    (["--training.steps", "0"], ["training: steps: expected at least 1, found 0"]),
    (["--training"], ["--training: expected a section"]),
    (["--student.path", "x"], ["student: layers, path: expected exactly one of the two"]),
    (["--objectives.kd.support", "st"], ["objectives.kd.support", "did you mean 'set'"]),
    (["--objectives.kd.set_top_p", "0.95"], ["set_top_p: expected at most", "captured_top_p"]),
    (["--distilled", "bellman_distil"], ["distilled: expected one of the objectives"]),
    (["stray"], ["stray"]),
]


@pytest.mark.parametrize(("words", "texts"), REFUSED, ids=[" ".join(w) for w, _ in REFUSED])
@pytest.mark.parametrize("name", ["run", "rollouts"])
def test_a_bad_recipe_is_one_error_before_any_work(  # noqa: PLR0917
    finished: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    words: list[str],
    texts: list[str],
):
    out = tmp_path / "out"
    assert cli.main([name, str(finished.recipe), "--out", str(out), *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("error: ") == 1
    assert all(text in said.err for text in texts), said.err
    assert not out.exists()


def test_a_bad_recipe_in_a_process_of_its_own(finished: Finished, tmp_path: Path):
    """No traceback, and no time for torch."""
    text = finished.recipe.read_text().replace("learning_rate", "learning_rat")
    (tmp_path / "bad.yaml").write_text(text)
    program = (
        "import sys; from tdistill.cli import main\n"
        f"status = main(['run', {str(tmp_path / 'bad.yaml')!r}, '--out', 'x'])\n"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'bad.yaml'} has 2 problems:")
    assert done.stderr.count("did you mean 'learning_rate'") == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["rum"], "rum: expected a command (demo, init, run, "),
        (["rum"], "did you mean 'run'?"),
        (["run"], "tdistill run: expected RECIPE.yaml [RECIPE.yaml ...] --out DIR"),
        (["run", "{recipe}"], "expected RECIPE.yaml [RECIPE.yaml ...] --out DIR"),
        (["run", "--out", "x"], "expected RECIPE.yaml [RECIPE.yaml ...] --out DIR"),
        (["run", "{recipe}", "--out"], "expected RECIPE.yaml [RECIPE.yaml ...] --out DIR"),
        (["train", "nosuch.yaml", "--out", "x"], "nosuch.yaml: expected a YAML file, found none"),
        (["inspect", "nosuch"], "nosuch: expected a teacher cache"),
        (["verify", "nosuch"], "nosuch: expected a teacher cache"),
        (["student", "--from", "./no", "--layers", "1", "--out", "x"], "./no: expected a folder"),
        (["student", "--from", "package:n.o", "--layers", "1", "--out", "x"], "package:n.o: expec"),
        (
            ["student", "--from", "{teacher}", "--layers", "9", "--out", "x"],
            "3, found 9",
        ),
        (["score", "--teacher", "{teacher}", "--data", "no.jsonl", "--cache", "x"], "no.jsonl"),
        (["run", "{recipe}", "--out", "x", "--teacher.path", "./no"], "./no: expected a folder"),
        (["run", "{recipe}", "--out", "x", "--teacher.path", "."], ".: expected a model in transf"),
        (["run", "{recipe}", "--out", "x", "--student.layers", "9"], "teacher's 3, found 9"),
        (["run", "{recipe}", "--out", "x", "--data.train", "no.jsonl"], "no.jsonl"),
    ],
)
def test_what_cannot_be_done_is_one_error(  # noqa: PLR0917
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    text: str,
):
    monkeypatch.chdir(tmp_path)
    teacher = finished.recipe.parent / "teacher"
    assert cli.main([w.format(recipe=finished.recipe, teacher=teacher) for w in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert text in said


def test_out_may_be_written_either_way(finished: Finished, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["run", str(finished.recipe), f"--out={finished.folder}"]) == 0
    said = capsys.readouterr().out
    assert "this run is complete" in said
    assert "Bellman" in said
    assert f"report:  {finished.folder / 'report.html'}" in said
    assert f"student: {finished.folder / 'student'}" in said


def test_a_home_that_no_shell_puts_in_is_found(
    finished: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(finished.folder.parent))
    assert cli.main(["run", str(finished.recipe), f"--out=~/{finished.folder.name}"]) == 0
    assert f"student: {finished.folder / 'student'}" in capsys.readouterr().out


def test_inspect_prints_json_and_text(finished: Finished, capsys: pytest.CaptureFixture[str]):
    cache = finished.folder / "cache"
    assert cli.main(["inspect", str(cache), "--json", "--discount", "0.9"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers == inspect_cache(Cache(cache), discount=0.9)
    assert numbers["discount"] == 0.9
    wanted = {
        "format_version",
        "teacher",
        "captured_top_p",
        "max_set_size",
        "rows",
        "steps",
        "members",
        "bytes",
        "bytes_per_step",
        "bytes_per_member",
        "set_size",
        "set_size_histogram",
        "coverage",
        "cap_binds",
        "out_of_set_rate",
        "ended_rate",
        "discount",
        "bounds",
    }
    assert wanted <= set(numbers)
    assert set(numbers["set_size"]) == {"mean", "median", "q90", "q99", "max"}
    assert set(numbers["coverage"]) == {"mean", "q10", "min"}
    assert {"set_top_p", "mean_size", "median_size", "bound", "bound_stationary", "kappa"} <= set(
        numbers["bounds"][0]
    )
    assert cli.main(["inspect", str(cache)]) == 0
    assert "set size" in capsys.readouterr().out


def test_the_metrics_hold_the_inspection_of_the_cache(finished: Finished):
    found = finished.metrics["cache"]
    assert found == inspect_cache(Cache(finished.folder / "cache"), discount=found["discount"])


def test_verify_tells_sound_from_damaged(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cache = tmp_path / "cache"
    shutil.copytree(finished.folder / "cache", cache)
    assert cli.main(["verify", str(cache)]) == 0
    assert "sound; 18 rows in 3 shards" in capsys.readouterr().out
    manifest = read_manifest(cache)
    wrong = replace(manifest.shards[1], steps=manifest.shards[1].steps + 1)
    manifest.with_shard(wrong).write(cache)
    assert cli.main(["verify", str(cache)]) == 1
    said = capsys.readouterr()
    assert "step count differs from the manifest" in said.err
    assert wrong.name in said.err
    shard = cache / manifest.shards[0].name
    shard.write_bytes(shard.read_bytes()[:-1])
    assert cli.main(["verify", str(cache)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_student_writes_a_model_with_fewer_layers(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    teacher = finished.recipe.parent / "teacher"
    out = tmp_path / "student"
    assert cli.main(["student", "--from", str(teacher), "--layers", "2", "--out", str(out)]) == 0
    assert "layers 0, 2 of the teacher" in capsys.readouterr().out
    whole, made = load(teacher), load(out)
    assert made.num_parameters < whole.num_parameters
    own: Any = made.model
    theirs: Any = whole.model
    assert own.model.layers[1].mlp.up_proj.weight.equal(theirs.model.layers[2].mlp.up_proj.weight)


def test_student_chooses_layers_on_given_responses(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["student", "--from", str(finished.recipe.parent / "teacher"), "--layers", "2"]
    words += ["--out", str(tmp_path / "student")]
    assert cli.main([*words, "--data", str(finished.recipe.parent / "train.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "of the teacher (greedy, forward KL " in said
    assert load(tmp_path / "student").model.config.num_hidden_layers == 2
    shutil.rmtree(tmp_path / "student")
    assert cli.main([*words, "--choose", "influence"]) == 2
    assert "influence is measured: expected responses" in capsys.readouterr().err


def score(finished: Finished, data: Path, cache: Path) -> int:
    teacher = finished.recipe.parent / "teacher"
    words = ["--teacher", str(teacher), "--data", str(data), "--cache", str(cache)]
    return cli.main(["score", *words])


def test_score_adds_given_responses_to_a_cache(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cache, data = tmp_path / "cache", tmp_path / "mine.jsonl"
    shutil.copytree(finished.folder / "cache", cache)
    write_rows(data, ["x y z", "q"], " two one")
    assert score(finished, data, cache) == 0
    assert "rows           20" in capsys.readouterr().out
    opened = Cache(cache)
    mine = opened.rows(source="score")
    assert len(mine) == 2
    assert all(row.ended and row.response_ids[-1] == 1 for row in mine)
    assert len(opened.evidence(mine).action_log_prob) == 6
    assert verify_cache(opened) == []
    before = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.arrow")}
    assert score(finished, data, cache) == 0
    assert {path.name: path.stat().st_mtime_ns for path in cache.glob("*.arrow")} == before


def test_score_refuses_rows_without_responses(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "a b"}\n')
    assert score(finished, data, tmp_path / "cache") == 2
    assert "error: " in capsys.readouterr().err


def test_an_interrupt_is_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("tdistill.cli.cache.inspect", interrupt)
    assert cli.main(["inspect", "x"]) == 130
    assert "the same command continues from here" in capsys.readouterr().err


def test_a_package_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(words: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'pyarow'", name="pyarow.parquet")

    monkeypatch.setattr(tools, "objectives", fail)
    assert cli.main(["objectives"]) == 2
    assert capsys.readouterr().err == (
        "error: expected the package pyarow, which this needs, found none; install all that is "
        "needed: pip install tdistill\n"
    )

    def mistaken(words: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'tdistill.no'", name="tdistill.no")

    monkeypatch.setattr(tools, "objectives", mistaken)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["objectives"])
