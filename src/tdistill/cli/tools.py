"""Single tools: make a student, list the objectives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tdistill.progress import quiet_libraries


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
class ObjectivesCommand:
    """Every objective: name, family, what it minimises, the data it needs, its cost, reference."""

    json: bool = False
    """Print plain JSON."""


def student(words: list[str]) -> int:
    """Write a student with fewer layers."""
    command = tyro.cli(StudentCommand, args=words, prog="tdistill student")
    quiet_libraries()
    from tdistill.models.language_model import load, save
    from tdistill.training.student import drop_layers, evenly_spaced

    teacher = load(command.source, gguf_file=command.gguf_file)
    keep = evenly_spaced(teacher.model.config.num_hidden_layers, command.layers)
    made = drop_layers(teacher, keep)
    save(made, command.out)
    print(
        f"{command.out}: layers {', '.join(map(str, keep))} of the teacher; "
        f"{teacher.num_parameters:,} -> {made.num_parameters:,} parameters. "
        "It needs training before it is of use."
    )
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
