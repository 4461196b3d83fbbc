"""The world of a run: what its recipe's own class makes before all else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdistill.checks import check
from tdistill.errors import InvalidValueError
from tdistill.files import in_world, locked
from tdistill.recipe import Recipe, named_paths
from tdistill.run.stages import Say, Stages, open_workplace, workplace_key


def make_world(recipe: Recipe, placed: Recipe, folder: Path, key: str, say: Say) -> None:
    """Let the recipe's own class make what the run starts from, once for all that share it.

    Args:
        recipe: of the run; it has a world.
        placed: the recipe with paths in place of ``world:NAME``.
        folder: of the world.
        key: of the world.
        say: prints a line for people.

    Raises:
        InvalidValueError: the folder holds something else, or a file that is named is not made.
    """
    config = recipe.world
    assert config is not None
    before, after = named_paths(recipe), named_paths(placed)
    outputs = {path: Path(after[field]) for field, path in before.items() if in_world(path)}

    def make() -> dict[str, Any]:
        open_workplace(folder, key)
        config.maker().make(folder)
        for path, output in outputs.items():
            found = ", ".join(sorted(p.name for p in folder.iterdir()))
            check("world.make", output.exists(), f"it to leave {path}", f"{found} in {folder}")
        return {}

    with locked(folder.parent / "locks" / folder.name, wait=True):
        beside, files = Stages(folder.parent, say), list(outputs.values())
        if beside.finished(folder.name, key, files) is None:
            _refuse_others(folder, None if config.folder is None else key)
        beside.run(folder.name, key, files, make)


def _refuse_others(folder: Path, shared: str | None) -> None:
    """Refuse a folder for a world whose files are someone's, or another world that is shared.

    Args:
        folder: what is in it would be deleted.
        shared: the key of the world, if other runs may use the folder.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    found = workplace_key(folder)
    if found is None:
        raise InvalidValueError(
            f"world.folder: expected a folder that is new or that a run made, found files of "
            f"another origin in {folder}; name another folder"
        )
    if shared not in (None, found):
        raise InvalidValueError(
            f"world.folder: expected the world of this class, code and settings, found another in "
            f"{folder}, which other runs may use; name another folder, or delete this one"
        )
