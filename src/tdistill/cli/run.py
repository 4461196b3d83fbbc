"""The commands on a recipe: a whole run, or its stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tdistill.errors import InvalidValueError
from tdistill.progress import quiet_libraries
from tdistill.strict import describe, split_words

if TYPE_CHECKING:
    from tdistill.recipe import Recipe
    from tdistill.run import Run

_USAGE = "RECIPE.yaml [RECIPE.yaml ...] --out DIR [--section.field value ...]"
_HELP = """
Several recipes that agree in all but their objectives are one with the objectives of all. The same
command continues what was interrupted; started twice, the processes share the work of a run.

Fields of a recipe, each with its type and its default:
"""


def demo(words: list[str]) -> int:
    """A run of the recipe that ships with the package."""
    recipe = Path(__file__).parent.parent / "demo" / "recipe.yaml"
    return run([str(recipe), "--out", "demo-run", *words])


def run(words: list[str]) -> int:
    """All of a recipe."""
    if _helped("run", words):
        return 0
    recipe, out = _read("run", words)
    return _run(recipe, out)


def _run(recipe: Recipe, out: Path) -> int:
    from rich.console import Console

    from tdistill.report import sample_panel, score_table
    from tdistill.report.compare import comparison_table
    from tdistill.run import Comparison, run_recipe

    console = Console()
    if recipe.seeds > 1:
        comparison = Comparison(
            recipe,
            out,
            seeds=recipe.seeds,
            baseline=recipe.baseline,
            keep_models=recipe.keep_models,
        )
        console.print(comparison_table(comparison.run()))
        return 1 if comparison.failed else 0
    metrics = run_recipe(recipe, out)
    console.print(score_table(metrics))
    console.print(sample_panel(metrics))
    print(
        f"report:  {out / 'report.html'}\nstudent: {out / 'student'}\n"
        f"numbers: {out / 'metrics.json'}"
    )
    return 0


def rollouts(words: list[str]) -> int:
    """The teacher's responses and their evidence."""
    return _stages("rollouts", words)


def train(words: list[str]) -> int:
    """The stages up to the trained students."""
    return _stages("train", words)


def evaluate(words: list[str]) -> int:
    """The stages up to the judgement of every model."""
    return _stages("evaluate", words)


def _stages(last: str, words: list[str]) -> int:
    if _helped(last, words):
        return 0
    recipe, out = _read(last, words)
    from tdistill.run import Run

    run = Run(recipe, out)
    run.check_student()
    print(f"  {len(run.rollouts)} teacher responses to train on")
    if last != "rollouts":
        run.train()
    if last == "evaluate":
        run.evaluate()
    print(_next_step(last, run))
    return 0


def _next_step(last: str, run: Run) -> str:
    done = {"rollouts": "cache", "train": "student", "evaluate": "stages"}[last]
    return f"{last} done: {run.folder / done}; `tdistill run` continues from here"


def _read(command: str, words: list[str]) -> tuple[Recipe, Path]:
    """The recipe with the values of the command line in it, and the folder."""
    paths, options = split_words(words)
    out = [option.text for option in options if option.name == "out"]
    if not paths or not out or not out[-1]:
        found = " ".join(words) or "nothing"
        raise InvalidValueError(f"tdistill {command}: expected {_USAGE}, found {found}")
    from tdistill.recipe import read_recipes

    fields = [option for option in options if option.name != "out"]
    recipe = read_recipes([Path(path) for path in paths], fields)
    quiet_libraries()
    return recipe, Path(out[-1])


def _helped(command: str, words: list[str]) -> bool:
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
