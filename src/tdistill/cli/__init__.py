"""The command line. Heavy imports happen inside the commands, so that ``--help`` is immediate."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from tdistill import __version__
from tdistill.errors import InvalidValueError, TdistillError
from tdistill.files import storage_error
from tdistill.progress import tell
from tdistill.strict import nearest

USAGE = f"""tdistill {__version__}: temporal-difference distillation on the teacher's top-p sets

usage: tdistill COMMAND ...        tdistill COMMAND --help

  demo                             the whole thing on the recipe that ships with the package
  run RECIPE ... --out DIR         teacher to students, table and report; resumes what is there

  doctor RECIPE ...                looks for what is wrong or doubtful, without sampling or training

the stages of a run, with what they need before them:
  rollouts RECIPE --out DIR        sample the teacher and capture its top-p sets into DIR/cache
                                   (--shard 2/8: the second of eight shares of that work)
  train RECIPE --out DIR           make the start and train every objective from it
  evaluate RECIPE --out DIR        judge every model on the test prompts

single tools:
  student --from T --layers N --out DIR   a student that keeps N of the teacher's layers
  score --teacher T --data F --cache C    teacher evidence for responses you already have
  merge DIR [CACHE ...]                   the shares of a run or of a cache become one cache
  inspect CACHE [--gap NATS] [--json]     what a cache holds, and what each p would cost
  verify CACHE                            check a cache: checksums and contents
  export-cache CACHE OUT.parquet          a cache for pandas, DuckDB and `datasets`
  objectives [--json]                     what can be minimised, and what each needs
  reward --model M --data F --out DIR     implied reward of given responses; ranks, filters them

Fields of a recipe can be set on the command line: --training.steps 200 --objectives.kd.support set
"""

# The module of this package where the function of a command's name is (with _ for -).
COMMANDS = {
    "demo": "run",
    "run": "run",
    "rollouts": "run",
    "train": "run",
    "evaluate": "run",
    "doctor": "doctor",
    "student": "tools",
    "score": "cache",
    "merge": "cache",
    "inspect": "cache",
    "verify": "cache",
    "export-cache": "cache",
    "objectives": "tools",
    "reward": "reward",
}


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
    # A scheduler that ends a job says so first: stop as on Ctrl-C, locks let go, bars closed.
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _stop)
    try:
        return _command(words[0])(words[1:])
    except BrokenPipeError:  # the reader of our output has gone
        return 1
    except (TdistillError, OSError) as error:
        told = error if isinstance(error, TdistillError) else storage_error(error, Path.cwd())
        if told is None:
            raise
        tell(f"error: {told}", error=True)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from here", file=sys.stderr)
        return 130


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InvalidValueError(f"{name}: expected a command ({known}){nearest(name, COMMANDS)}")
    return getattr(import_module(f"tdistill.cli.{COMMANDS[name]}"), name.replace("-", "_"))
