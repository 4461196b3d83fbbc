"""The command line. Heavy imports happen inside the commands, so that ``--help`` is immediate."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path

from tdistill import __version__
from tdistill.errors import InvalidValueError, TdistillError, excerpt
from tdistill.files import storage_error
from tdistill.processes import ProcessEnded, is_first_process, process_count, process_rank
from tdistill.progress import speak, tell
from tdistill.strict import nearest

USAGE = f"""tdistill {__version__}: temporal-difference distillation on the teacher's top-p sets

usage: tdistill COMMAND ...        tdistill COMMAND --help

begin:
  demo                             the whole thing on the recipe that ships with the package
  init [--teacher T] [--data F]    a commented recipe for your models and data; --list: ready ones
  plan RECIPE ...                  parameters, bytes, memory and hours, before anything is loaded
  doctor RECIPE ...                looks for what is wrong or doubtful, without sampling or training

distil:
  run RECIPE ... --out DIR         teacher to students, table and report; resumes what is there
  rollouts RECIPE --out DIR        only so far: the teacher's top-p sets; --shard 2/8: a share
  train RECIPE --out DIR           only so far: make the start, train every objective from it
  evaluate RECIPE --out DIR        only so far: judge every model on the test prompts

use what a run made:
  chat RUN [--model LABEL ...]     talk to teacher, start and student, side by side
  try RUN --prompts F              their responses to the prompts of a file
  publish RUN --repo OWNER/NAME    the student to the Hugging Face hub; a dry run without --yes
  export RUN --gguf OUT.gguf       the student for llama.cpp
  reward --run RUN --data F --out DIR     implied reward of given responses; ranks, filters them

evidence and models:
  score --teacher T --data F --cache C    teacher evidence for responses you already have
  merge DIR [CACHE ...]                   the shares of a run or of a cache become one cache
  inspect CACHE [--gap NATS] [--json]     what a cache holds, and what each p would cost
  verify CACHE                            check a cache: checksums and contents
  export-cache CACHE OUT.parquet          a cache for pandas, DuckDB and `datasets`
  student --from T --layers N --out DIR   a student that keeps N of the teacher's layers
  objectives [--json]                     what can be minimised, and what each needs

Fields of a recipe can be set on the command line: --training.steps 200 --objectives.kd.support set
Long work takes --quiet, which leaves out all but results and what goes wrong, and --json, which
writes its events as JSON lines.
"""

# The module of this package where the function of a command's name is: with _ for -, and _ after
# a word of Python's own.
COMMANDS = {
    "demo": "run",
    "init": "init",
    "run": "run",
    "rollouts": "run",
    "train": "run",
    "evaluate": "run",
    "plan": "plan",
    "doctor": "doctor",
    "chat": "talk",
    "try": "talk",
    "publish": "hand_over",
    "export": "hand_over",
    "student": "tools",
    "score": "cache",
    "merge": "cache",
    "inspect": "cache",
    "verify": "cache",
    "export-cache": "cache",
    "objectives": "tools",
    "reward": "reward",
}

LONG = ("demo", "run", "rollouts", "train", "evaluate", "score", "reward", "try")
"""Commands that take --quiet and --json."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2 for input that cannot be used)."""
    # Threads that spin while they wait made training five times slower beside another process;
    # it must be set before torch is imported (docs/log.md, 2026-11-24).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if process_count() > 1:  # of DDP, on a flag that a user of this package cannot set
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    # A scheduler that ends a job says so first: stop as on Ctrl-C, locks let go, bars closed.
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _stop)
    speak("words")
    try:
        return _command(words[0])(_without_manner(*words))
    except BrokenPipeError:  # the reader of our output has gone
        return 1
    except (TdistillError, OSError, ModuleNotFoundError) as error:
        told = _in_words(error)
        if told is None:
            raise
        if not isinstance(told, ProcessEnded):  # the one that did says why
            who = "" if is_first_process() else f"process {process_rank()}: "
            tell(f"error: {who}{told}", error=True)
        return 2
    except KeyboardInterrupt:
        if is_first_process():
            print("\ninterrupted; the same command continues from here", file=sys.stderr)
        return 130


def _in_words(error: Exception) -> TdistillError | None:
    """What an error says to people; None where it is a fault of ours."""
    if isinstance(error, OSError) and not isinstance(error, TdistillError):
        return storage_error(error, Path.cwd())
    if not isinstance(error, ModuleNotFoundError):
        return error if isinstance(error, TdistillError) else None
    name = (error.name or "tdistill").partition(".")[0]
    needs = f"expected the package {excerpt(name)}, which this needs, found none; install all that"
    missing = find_spec(name) is None
    return InvalidValueError(f"{needs} is needed: pip install tdistill") if missing else None


def _without_manner(command: str, *words: str) -> list[str]:
    """The words of a command without --quiet and --json, which are obeyed."""
    if command not in LONG:
        return list(words)
    for manner in ("quiet", "json"):  # of both the second counts
        if f"--{manner}" in words:
            speak(manner)
    return [word for word in words if word not in ("--quiet", "--json")]


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InvalidValueError(f"{name}: expected a command ({known}){nearest(name, COMMANDS)}")
    function = name.replace("-", "_") + "_" * iskeyword(name)
    return getattr(import_module(f"tdistill.cli.{COMMANDS[name]}"), function)
