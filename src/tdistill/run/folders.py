"""Where a run keeps its models, for the run itself and for those who read a finished one."""

from __future__ import annotations

from pathlib import Path

from tdistill.errors import InvalidValueError
from tdistill.files import expanded, in_world, place_in_world, resolve_path
from tdistill.recipe import Recipe

RESOLVED_RECIPE = "recipe.resolved.yaml"
STUDENT = "student"  # a copy of the distilled model
RENDERING = "rendering.json"  # what the rendering of prompts depends on, beside the recipe


def resolved_recipe(folder: Path) -> Path:
    """The recipe of a run, every default spelled out.

    Raises:
        InvalidValueError: no run was made in the folder.
    """
    path = folder / RESOLVED_RECIPE
    if not path.exists():
        raise InvalidValueError(
            f"run: expected the folder of a run, with {RESOLVED_RECIPE}; found none in "
            f"{folder}; give a folder that `tdistill run` wrote"
        )
    return path


def seed_folder(folder: Path, number: int) -> Path:
    """Where the students of a training seed are: those of the first in the run's own folder.

    Args:
        folder: of the run.
        number: of the training seed, from 0.
    """
    return folder if number == 0 else folder / f"seed-{number}"


def tracking_folder(folder: Path) -> Path:
    """Where trackers write the files of all trainings of a run."""
    return folder / "tracking"


def world_folder(recipe: Recipe, folder: Path) -> Path:
    """Where the world of a run in a folder is."""
    own = None if recipe.world is None else recipe.world.folder
    return folder / "world" if own is None else expanded(own)


def model_folder(recipe: Recipe, folder: Path, label: str) -> Path:
    """Where the model of a label is.

    Args:
        recipe: of the run.
        folder: of the run, or of one of its further training seeds.
        label: ``teacher``, ``start`` or the name of an objective.

    Returns:
        A folder in the given one; the teacher's is the recipe's, unless it was converted.
    """
    if label == "teacher":
        config = recipe.teacher
        if config.gguf_file:
            return folder / "teacher"
        if in_world(config.path):  # which may not be made yet
            return Path(place_in_world(config.path, world_folder(recipe, folder)))
        return Path(resolve_path(config.path))
    return folder / "models" / label


def files_of_model(folder: Path) -> list[Path]:
    """What must be in a model's folder: who needs room may have deleted the weights alone."""
    parts = folder / "model.safetensors.index.json"
    return [folder / "config.json", parts if parts.exists() else folder / "model.safetensors"]
