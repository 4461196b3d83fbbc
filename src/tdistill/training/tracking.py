"""Trackers (`training.report_to`): each training is a run of its own, in a place that stays.

The callbacks are those of transformers. Left alone, TensorBoard's files would lie among checkpoints
that are removed, and all objectives of a process would go into the first one's wandb run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.integrations import TensorBoardCallback

PROJECT = "tdistill"
"""What trackers file the runs under, where the environment names no project."""


def project_name() -> str:
    """The project that the environment names, or ours."""
    named = (os.environ.get(name) for name in ("WANDB_PROJECT", "TRACKIO_PROJECT"))
    return next(filter(None, named), PROJECT)


@contextmanager
def tracked(trainer: Any, folder: Path) -> Iterator[None]:
    """A training whose trackers know it by its name, and have let go of it at the end.

    Args:
        trainer: not begun yet.
        folder: where TensorBoard's files go, unless ``TENSORBOARD_LOGGING_DIR`` names another place
            for folders of such names; its name is that of the training.
    """
    base = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or folder.parent)
    trainer.args.run_name, trainer.args.project = folder.name, project_name()
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(base / folder.name)
    named = os.environ.get("WANDB_PROJECT")
    os.environ["WANDB_PROJECT"] = project_name()  # transformers asks nothing else
    try:
        yield
    finally:
        if named is None:
            del os.environ["WANDB_PROJECT"]
        end_tracking()


def end_tracking() -> None:
    """End the run that wandb has open; the other trackers end theirs themselves."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
