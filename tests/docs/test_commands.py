"""Every command on a page is one that there is, with options that it has."""

from __future__ import annotations

import io
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

import pytest
from markdown_pages import PAGES, ROOT, commands

from tdistill import cli
from tdistill.recipe import Recipe
from tdistill.strict import describe

DATED = "log.md"  # tells what was, with the commands of its day
ON_RECIPES = {"demo", "run", "rollouts", "train", "evaluate", "doctor"}
BESIDES = {"--out", "--shard", "--help", "--quiet", "--json"}
SHOWN = [path for path in [*PAGES, ROOT / "README.md"] if path.name != DATED]


@cache
def fields() -> frozenset[str]:
    return frozenset(field.path for field in describe(Recipe))


@cache
def help_of(command: str) -> str:
    said = io.StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        cli.main([command, "--help"])
    return said.getvalue()


def unknown(words: list[str]) -> list[str]:
    """The command, or its options, that there are not."""
    command, *rest = words
    if command.startswith("--"):
        return [] if command in ("--help", "--version") else [command]
    if command not in cli.COMMANDS:
        return [command]
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    return [option for option in options if not known(command, option)]


def known(command: str, option: str) -> bool:
    if command not in ON_RECIPES:
        return option in help_of(command).replace(",", " ").split() or option in BESIDES
    section, _, rest = option.removeprefix("--").partition(".")
    label, _, field = rest.partition(".")
    own = section == "objectives" and not any(
        f.startswith(f"objectives.{label}.") for f in fields()
    )
    return option in BESIDES or option.removeprefix("--") in fields() or (own and field != "")


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_every_command_of_a_page_is_there(path: Path):
    found = [(words, unknown(words)) for words in commands(path)]
    assert [words for words, wrong in found if wrong] == []


def test_commands_are_found_and_wrong_ones_told():
    assert sum(len(list(commands(path))) for path in SHOWN) > 60
    assert unknown(["runn", "recipe.yaml"]) == ["runn"]
    wrong = ["--out", "run", "--training.step", "3", "--objectives.kd.bet", "1"]
    assert unknown(["run", "recipe.yaml", *wrong]) == ["--training.step", "--objectives.kd.bet"]
    assert unknown(["publish", "run", "--repos", "a/b"]) == ["--repos"]
    assert unknown(["run", "a.yaml", "--objectives.mine.weight", "2"]) == []
