"""The command that writes a first recipe, for models and data that it has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from tdistill.errors import InvalidValueError
from tdistill.files import write_atomically
from tdistill.progress import quiet_libraries, tell
from tdistill.ready import RECIPES, companion, ready_recipe
from tdistill.strict import nearest


@dataclass(frozen=True)
class InitCommand:
    """Write a commented recipe, for your own models and data after a look at both."""

    name: tyro.conf.Positional[str] = "laptop"
    """Which of the ready recipes; --list shows them."""
    teacher: str | None = None
    """The model to distil: a folder, hub:NAME, or package:NAME. It is not loaded, only its
    configuration and tokenizer are."""
    data: str | None = None
    """Prompts, with or without responses: JSONL, Parquet, CSV, a datasets folder, hub:NAME."""
    out: Path = Path("recipe.yaml")
    """File to write."""
    show_list: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Show the ready recipes, and write nothing."""


def init(words: list[str]) -> int:
    """Write a recipe, and the code that it names."""
    command = tyro.cli(InitCommand, args=words, prog="tdistill init")
    if command.show_list:
        print("\n".join(f"{name:<14} {about}" for name, about in RECIPES.items()))
        return 0
    if command.name not in RECIPES:
        raise InvalidValueError(
            f"{command.name}: expected a ready recipe ({', '.join(RECIPES)})"
            f"{nearest(command.name, RECIPES)}"
        )
    files = _files(command)
    for path in files:
        if path.exists():
            raise InvalidValueError(
                f"--out: expected a file to make, found {path} already there; name another with "
                "--out, or remove it"
            )
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    _check(command)
    return 0


def _files(command: InitCommand) -> dict[Path, str]:
    files = {command.out: ready_recipe(command.name, _values(command))}
    code = companion(command.name)
    return files if code is None else files | {command.out.parent / code[0]: code[1]}


def _values(command: InitCommand) -> dict[str, Any]:
    """What goes into the template: what was seen, and defaults for what was not named."""
    from tdistill.run.suggestion import Suggestion, path_beside, see_data, see_teacher

    seen: dict[str, Any] = {"recipe": str(command.out)}
    tokenizer = None
    if command.teacher is not None:
        quiet_libraries()
        from tdistill.models.language_model import load_tokenizer

        tokenizer = load_tokenizer(command.teacher)
        seen |= see_teacher(command.teacher, tokenizer)
    if command.data is not None:
        seen |= see_data(command.data, tokenizer)
    seen["teacher"] = path_beside(command.out, command.teacher or "models/teacher")
    seen["train"] = path_beside(command.out, command.data or "train.jsonl")
    return Suggestion(**seen).values()


def _check(command: InitCommand) -> None:
    """Read what was written, as a run would, and say what is next."""
    from tdistill.recipe import read_recipe

    recipe, out = read_recipe(command.out), command.out
    student = recipe.student.path or f"{recipe.student.layers} layers"
    tell(f"{out}: {recipe.teacher.path} into {student}, on {recipe.data.train}")
    if command.teacher is None:
        tell("put your teacher in teacher.path, or start again with --teacher")
    if command.data is None and recipe.world is None:
        tell("put your prompts in data.train, or start again with --data")
    tell(f"next: tdistill doctor {out}\n      tdistill run {out} --out run")
