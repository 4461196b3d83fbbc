"""The command line. Heavy imports happen inside the commands, so that ``--help`` is immediate."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tdistill import __version__
from tdistill.errors import InvalidValueError, TdistillError
from tdistill.teacher.config import CaptureConfig

if TYPE_CHECKING:
    from tdistill.report import Result
    from tdistill.run import Run

USAGE = f"""tdistill {__version__}: temporal-difference distillation on the teacher's top-p sets

usage: tdistill COMMAND ...        tdistill COMMAND --help

  demo                             the whole thing on the recipe that ships with the package
  run RECIPE --out DIR             teacher to student, table and report; resumes what is there

the stages of a run, with what they need before them:
  rollouts RECIPE --out DIR        sample the teacher and capture its top-p sets into DIR/cache
  train RECIPE --out DIR           make the start and train every objective from it
  evaluate RECIPE --out DIR        judge every model on the test prompts

single tools:
  student --from T --layers N --out DIR   a student that keeps N of the teacher's layers
  score --teacher T --data F --cache C    teacher evidence for responses you already have
  inspect CACHE [--gap NATS] [--json]     what a cache holds, and what each p would cost
  verify CACHE                            check a cache: checksums and contents
  objectives [--json]                     what can be minimised, and what each needs
  reward --model M --data F --out DIR     implied reward of given responses; ranks, filters them

Fields of a recipe can be set on the command line: --training.steps 200 --objectives.kd.support set
"""


@dataclass(frozen=True)
class StudentCommand:
    """Make a student that keeps some of a teacher's layers, evenly spaced, first and last kept."""

    source: Annotated[str, tyro.conf.arg(name="from")]
    """The teacher: a folder, a hub name, or package:NAME."""
    layers: int
    """How many layers to keep."""
    out: Path
    """Folder to write (Hugging Face format)."""
    gguf_file: str | None = None
    """Name of a GGUF file in the teacher's folder."""


@dataclass(frozen=True)
class ScoreCommand:
    """Capture the teacher's evidence for given responses, by one forward pass each."""

    teacher: str
    """The teacher: a folder, a hub name, or package:NAME."""
    data: str
    """Prompts with responses: JSONL, Parquet or a datasets folder (see DataConfig)."""
    cache: Path
    """Cache to create or append to."""
    gguf_file: str | None = None
    """Name of a GGUF file in the teacher's folder."""
    batch_size: int = 32
    """Rows of one forward pass."""
    capture: CaptureConfig = field(default_factory=CaptureConfig)


@dataclass(frozen=True)
class InspectCommand:
    """What a cache holds: rows, sizes, coverage, bounds."""

    cache: tyro.conf.Positional[Path]
    """Folder of the cache."""
    json: bool = False
    """Print plain JSON."""
    discount: float = 0.99
    """Gamma of the bounds."""
    gap: float | None = None
    """Nats of Q that may be lost: prints the p, and the gain for each state, that this asks for."""


@dataclass(frozen=True)
class ObjectivesCommand:
    """Every objective: name, family, what it minimises, the data it needs, its cost, reference."""

    json: bool = False
    """Print plain JSON."""


@dataclass(frozen=True)
class VerifyCommand:
    """Check every shard of a cache: checksum, counts, order, ranges."""

    cache: tyro.conf.Positional[Path]
    """Folder of the cache."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2 for input that cannot be used)."""
    # Threads that spin while they wait made training five times slower beside another process;
    # it must be set before torch is imported (docs/log.md, 2026-11-24).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    try:
        return _command(words[0])(words[1:])
    except TdistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from here", file=sys.stderr)
        return 130


def _command(name: str) -> Callable[[list[str]], int]:
    commands: dict[str, Callable[[list[str]], int]] = {
        "demo": _demo,
        "run": lambda words: _with_recipe("run", words),
        "rollouts": lambda words: _with_recipe("rollouts", words),
        "train": lambda words: _with_recipe("train", words),
        "evaluate": lambda words: _with_recipe("evaluate", words),
        "student": _student,
        "score": _score,
        "inspect": _inspect,
        "verify": _verify,
        "objectives": _objectives,
        "reward": _reward,
    }
    if name not in commands:
        import difflib

        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InvalidValueError(f"{name}: expected a command ({', '.join(commands)}){hint}")
    return commands[name]


def _demo(words: list[str]) -> int:
    recipe = Path(__file__).parent / "demo" / "recipe.yaml"
    out = (
        [] if any(w == "--out" or w.startswith("--out=") for w in words) else ["--out", "demo-run"]
    )
    return _with_recipe("run", [str(recipe), *out, *words])


def _with_recipe(command: str, words: list[str]) -> int:
    if "-h" in words or "--help" in words:
        print(_recipe_help(command))
        return 0
    recipe_path, out, overrides = _split_words(command, words)
    from tdistill.recipe import read_recipe

    recipe = read_recipe(recipe_path, overrides)
    _quiet_libraries()
    from tdistill.run import Run, run_recipe

    if command == "run":
        result = run_recipe(recipe, out)
        _show(result, out)
        return 1 if result.failed else 0
    run = Run(recipe, out)
    {"rollouts": run.sample_rollouts, "train": run.train, "evaluate": run.evaluate}[command]()
    print(_next_step(command, run))
    return 1 if run.failed else 0


def _split_words(command: str, words: list[str]) -> tuple[Path, Path, list[str]]:
    """RECIPE, --out and the overrides."""
    out, rest = None, []
    remaining = iter(words)
    for word in remaining:
        if word == "--out":
            out = next(remaining, None)
        elif word.startswith("--out="):
            out = word.removeprefix("--out=")
        else:
            rest.append(word)
    if not rest or rest[0].startswith("-") or out is None:
        raise InvalidValueError(
            f"tdistill {command}: expected RECIPE.yaml --out DIR [--section.field value ...], "
            f"found {' '.join(words) or 'nothing'}"
        )
    return Path(rest[0]), Path(out), rest[1:]


def _recipe_help(command: str) -> str:
    usage = f"usage: tdistill {command} RECIPE.yaml --out DIR [--section.field value ...]"
    return "\n".join([usage, "", *_recipe_fields()])


def _recipe_fields() -> list[str]:
    from tdistill.recipe import Recipe
    from tdistill.strict import describe

    lines = []
    for entry in describe(Recipe):
        default = f" = {entry.default_text}" if entry.default_text else ""
        lines.append(f"  --{entry.path}  ({entry.type_text}){default}")
        if entry.help:
            lines.append(f"        {entry.help}")
    return lines


def _student(words: list[str]) -> int:
    command = tyro.cli(StudentCommand, args=words, prog="tdistill student")
    _quiet_libraries()
    from tdistill.models.language_model import load, save
    from tdistill.training.student import drop_layers, evenly_spaced

    teacher = load(command.source, gguf_file=command.gguf_file)
    keep = evenly_spaced(teacher.model.config.num_hidden_layers, command.layers)
    student = drop_layers(teacher, keep)
    save(student, command.out)
    print(
        f"{command.out}: layers {', '.join(map(str, keep))} of the teacher; "
        f"{teacher.num_parameters:,} -> {student.num_parameters:,} parameters. "
        "It needs training before it is of use."
    )
    return 0


def _score(words: list[str]) -> int:
    command = tyro.cli(ScoreCommand, args=words, prog="tdistill score")
    _quiet_libraries()
    from tdistill.data import DataConfig, load_examples
    from tdistill.evidence.rows import Row
    from tdistill.models.language_model import load
    from tdistill.progress import Progress
    from tdistill.teacher.cache import CacheWriter, identity_of
    from tdistill.teacher.scoring import collect_scores
    from tdistill.teacher.source import LiveTeacher

    teacher = load(command.teacher, gguf_file=command.gguf_file)
    config = DataConfig(train=command.data)
    examples, report = load_examples(
        command.data, teacher.tokenizer, config, require_references=True
    )
    print(report.text())
    rows = [Row(e.prompt_ids, e.reference_ids, e.reference_ended) for e in examples]
    live = LiveTeacher(teacher, command.capture)
    bar, done = Progress("score", len(rows)), 0
    with CacheWriter(command.cache, identity_of(teacher, command.capture)) as writer:
        for count in collect_scores(live, rows, writer, batch_size=command.batch_size):
            done += count
            bar.update(done, "responses")
    bar.close()
    return _inspect([str(command.cache)])


def _inspect(words: list[str]) -> int:
    command = tyro.cli(InspectCommand, args=words, prog="tdistill inspect")
    from tdistill.teacher.cache import Cache
    from tdistill.teacher.inspection import inspect_cache, inspection_text

    numbers = inspect_cache(Cache(command.cache), discount=command.discount, gap=command.gap)
    print(json.dumps(numbers, indent=1) if command.json else inspection_text(numbers))
    return 0


def _verify(words: list[str]) -> int:
    command = tyro.cli(VerifyCommand, args=words, prog="tdistill verify")
    from tdistill.teacher.cache import Cache
    from tdistill.teacher.inspection import verify_cache

    cache = Cache(command.cache)
    problems = verify_cache(cache)
    for problem in problems:
        print(f"damaged: {problem}", file=sys.stderr)
    if not problems:
        print(
            f"{command.cache}: sound; {cache.manifest.rows} rows in "
            f"{len(cache.manifest.shards)} shards"
        )
    return 1 if problems else 0


def _objectives(words: list[str]) -> int:
    command = tyro.cli(ObjectivesCommand, args=words, prog="tdistill objectives")
    from tdistill.training.objectives.catalogue import catalogue

    rows = catalogue()
    if command.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(f"{row['name']}  ({row['family']})")
        for key in ("minimises", "data", "optimum", "bias", "cost", "reference"):
            print(f"    {key:<10} {row[key]}")
        print(f"    {'fields':<10} {', '.join(row['fields']) or '-'}")
    return 0


def _reward(words: list[str]) -> int:
    from tdistill.run.reward_command import RewardCommand, read_and_rank

    command = tyro.cli(RewardCommand, args=words, prog="tdistill reward")
    _quiet_libraries()
    print("\n".join(read_and_rank(command)))
    return 0


def _show(result: Result, out: Path) -> None:
    from rich.console import Console

    from tdistill.report import sample_panel, score_table, summary

    console = Console()
    console.print(score_table(result))
    console.print(sample_panel(result))
    print("\n".join(summary(result)))
    for who, why in result.failed.items():
        print(f"failed:  {who} ({why})")
    print(
        f"report:  {out / 'report.html'}\nstudent: {out / 'student'}\n"
        f"numbers: {out / 'metrics.json'}"
    )


def _next_step(command: str, run: Run) -> str:
    done = {"rollouts": "cache", "train": "student", "evaluate": "stages"}[command]
    return f"{command} done: {run.folder / done}; `tdistill run` continues from here"


def _quiet_libraries() -> None:
    """Our own progress is enough."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
