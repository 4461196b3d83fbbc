"""The table and the report of a finished run, for the trackers that keep such things."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tdistill.errors import one_line
from tdistill.report.card import in_a_line
from tdistill.report.measures import number
from tdistill.report.result import Result
from tdistill.report.tables import table_columns
from tdistill.run.folders import tracking_folder
from tdistill.run.stages import Say
from tdistill.training.tracking import project_name

RESULT = "result"
_KEPT = ("report.html", "metrics.json")


def attach(names: Sequence[str], result: Result, folder: Path, say: Say) -> None:
    """Give every tracker the result; one that fails is told, since the run itself is done.

    Args:
        names: of ``training.report_to``.
        result: of the run.
        folder: of the run, with its report.
        say: prints a line for people.
    """
    for name, give in _TRACKERS.items():
        if name in names or "all" in names:
            try:
                give(result, folder)
            except Exception as error:  # of the network, of an account, of a library
                say(f"  {name} did not take the result: {one_line(error)}")


def plain_scores(result: Result) -> tuple[list[str], list[list[Any]]]:
    """The main table as plain values: its heads, and a row for each model."""
    columns = [column for column in table_columns(result) if column.metric != "seconds"]
    heads = ["model"]
    for column in columns:
        heads += [column.title, f"{column.title}, low", f"{column.title}, high"]
    rows = []
    for label in result.models:
        row: list[Any] = [label]
        for column in columns:
            found = result.estimate(label, column.metric, column.decoding)
            row += [None] * 3 if found is None else [found.mean, found.low, found.high]
        rows.append(row)
    return heads, rows


def _to_tensorboard(result: Result, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    base = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or tracking_folder(folder))
    heads, rows = plain_scores(result)
    cells = [heads, ["---"] * len(heads), *([_written(value) for value in row] for row in rows)]
    lines = [" | ".join(map(in_a_line, line)) for line in cells]
    writer = SummaryWriter(str(base / RESULT))
    writer.add_text("scores", "\n".join(f"| {line} |" for line in lines))
    writer.add_text("report", in_a_line(str(folder / _KEPT[0])))
    writer.close()


def _written(value: Any) -> str:
    return value if isinstance(value, str) else number(value, 4)


def _to_wandb(result: Result, folder: Path) -> None:
    wandb: Any = import_module("wandb")
    heads, rows = plain_scores(result)
    with wandb.init(project=project_name(), name=f"{folder.name}-{RESULT}", job_type=RESULT) as run:
        page = wandb.Html((folder / _KEPT[0]).read_text(encoding="utf-8"), inject=False)
        run.log({"scores": wandb.Table(columns=heads, data=rows), "report": page})
        artifact = wandb.Artifact(f"{folder.name}-{RESULT}", type=RESULT)
        for file in _KEPT:
            artifact.add_file(str(folder / file))
        run.log_artifact(artifact)


def _to_trackio(result: Result, folder: Path) -> None:
    trackio, pandas = import_module("trackio"), import_module("pandas")
    heads, rows = plain_scores(result)
    trackio.init(project=project_name(), name=f"{folder.name}-{RESULT}")
    try:
        trackio.log({"scores": trackio.Table(dataframe=pandas.DataFrame(rows, columns=heads))})
        artifact = trackio.Artifact(f"{folder.name}-{RESULT}", type=RESULT)
        for file in _KEPT:
            artifact.add_file(str(folder / file))
        trackio.log_artifact(artifact)
    finally:
        trackio.finish()


_TRACKERS: dict[str, Callable[[Result, Path], None]] = {
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
    "trackio": _to_trackio,
}
