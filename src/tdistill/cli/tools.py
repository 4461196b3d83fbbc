"""Single tools: make a student, list the objectives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tdistill.errors import InvalidValueError, printable
from tdistill.files import replacing_folder
from tdistill.progress import quiet_libraries
from tdistill.training.config import LayerRule

if TYPE_CHECKING:
    from tdistill.evidence.rows import Row


@dataclass(frozen=True)
class StudentCommand:
    """Make a student that keeps some of a teacher's layers."""

    source: Annotated[str, tyro.conf.arg(name="from")]
    """The teacher: a folder, hub:NAME, or package:NAME."""
    layers: int
    """How many layers to keep."""
    out: Path
    """Folder to write (Hugging Face format)."""
    gguf_file: str | None = None
    """Name of a GGUF file in the teacher's folder."""
    choose: LayerRule | None = None
    """Which layers, see StudentConfig. Default: greedy with data, evenly spaced without."""
    data: str | None = None
    """Prompts with responses, best the teacher's own, to measure layers on (see DataConfig)."""
    measured_tokens: int = 1024
    """About how many tokens of the data are read."""


@dataclass(frozen=True)
class ObjectivesCommand:
    """Every objective: name, family, what it minimises, the data it needs, its cost, reference."""

    json: bool = False
    """Print plain JSON."""


def student(words: list[str]) -> int:
    """Write a student with fewer layers."""
    command = tyro.cli(StudentCommand, args=words, prog="tdistill student")
    quiet_libraries()
    from tdistill.cli.cache import read_responses
    from tdistill.data import DataConfig
    from tdistill.models.language_model import save
    from tdistill.teacher.loading import load_stopping
    from tdistill.training.layer_choice import choose_layers
    from tdistill.training.student import drop_layers

    if command.out.exists() and any(command.out.iterdir()):
        raise InvalidValueError(
            f"--out: expected a new or empty folder, found {command.out} with files in it; name "
            "another, or remove it"
        )
    teacher = load_stopping(command.source, gguf_file=command.gguf_file)
    rows: list[Row] = []
    if command.data is not None:
        rows = read_responses(DataConfig(train=command.data), teacher.tokenizer)
    rule = command.choose or ("greedy" if rows else "even")
    choice = choose_layers(
        teacher, command.layers, rule, rows, measured_tokens=command.measured_tokens
    )
    made = drop_layers(teacher, choice.kept)
    with replacing_folder(command.out) as partial:
        save(made, partial)
    told = f"{command.out}: {choice.text()}; {teacher.num_parameters:,} -> {made.num_parameters:,}"
    print(printable(f"{told} parameters. It needs training before it is of use."))
    if rule == "even":
        print("Layers chosen by --choose greedy on responses (--data) make a better start.")
    return 0


def objectives(words: list[str]) -> int:
    """List what can be minimised."""
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
