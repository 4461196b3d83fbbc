"""Paths that recipes name, fingerprints of what is there, whole writes and locks. Torch-free."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from tdistill.errors import ModelError
from tdistill.hashing import file_sha256, key_of

_HUB = "hub:"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PACKAGE = "package:"
_WORLD = "world:"
_WHOLE_BELOW = 1 << 20


def resolve_path(path: str) -> str:
    """A model's path: ``package:NAME`` becomes the folder of that installed package.

    The package is found, not imported. ``hub:NAME`` stays as it is, and nothing else is ever looked
    up on a hub.

    Raises:
        ModelError: if the package is not installed, nothing is at a path, or a hub name is none.
    """
    if path.startswith(_PACKAGE):
        try:
            spec = find_spec(path.removeprefix(_PACKAGE))
        except (ImportError, ValueError):  # a parent package is missing, or the name is empty
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"{path}: expected an installed package of that name, found none")
        return str(spec.submodule_search_locations[0])
    if path.startswith(_HUB):
        if not _HUB_NAME.fullmatch(path.removeprefix(_HUB)):
            raise ModelError(f"{path}: expected hub:NAME or hub:OWNER/NAME")
        return path
    local = Path(path).expanduser()
    if path and local.exists():
        return str(local)
    cure = "give the folder of a model"
    if _HUB_NAME.fullmatch(path):
        cure = f"if you mean the model of that name on the Hugging Face hub, write hub:{path}"
    where = "" if local.is_absolute() else f" (searched in {Path.cwd()})"
    raise ModelError(f"{path}: expected a folder with a model, found nothing there{where}; {cure}")


def hub_name(path: str) -> str | None:
    """The name of ``hub:NAME``; None for what is on this machine.

    Example:
        >>> hub_name("hub:owner/model"), hub_name("model")
        ('owner/model', None)
    """
    return path.removeprefix(_HUB) if path.startswith(_HUB) else None


def in_world(path: str | None) -> bool:
    """Whether a path is ``world:NAME``: what the world of a run makes by that name."""
    return path is not None and path.startswith(_WORLD)


def place_in_world(path: str, world: Path) -> str:
    """``world:NAME`` as the path in the folder of a world; other paths as they are."""
    return str(world / path.removeprefix(_WORLD)) if in_world(path) else path


def fingerprint(path: str | None) -> str:
    """Changes when what is named does: content of small files, size and time of large ones.

    A folder stands for the files in it, a pattern such as ``texts/*.txt`` for those it matches.

    Names that are not local files (``hub:NAME``, ``demo:SPLIT``) stand for themselves, the latter
    with the content of the packaged file.
    """
    if path is None:
        return "none"
    matches = sorted(glob.glob(path)) if glob.has_magic(path) else []  # noqa: PTH207
    if matches:
        return key_of([(match, fingerprint(match)) for match in matches])
    if path.startswith("demo:"):
        return f"{path}={fingerprint(str(Path(__file__).parent / 'demo' / 'prompts.jsonl'))}"
    try:
        place = Path(resolve_path(path))
    except ModelError:
        return path
    if not place.exists():
        return path
    files = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.is_file())
    return key_of([_content_of(file) for file in files])


def _content_of(file: Path) -> tuple[str, int, str]:
    stat = file.stat()
    small = stat.st_size < _WHOLE_BELOW
    return file.name, stat.st_size, file_sha256(file) if small else f"time {stat.st_mtime_ns}"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file that is, after a kill or a power cut, either the old or the new one, whole.

    Text is written as UTF-8. The folder's entry is on the disk too when this returns.
    """
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, which takes its place, synced, if nothing is raised."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        return
    entry = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file, if no other process does; no lock outlives its owner.

    Args:
        path: the file; its folder is created if absent.
        wait: until the other process lets go.

    Yields:
        Whether the lock is held.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    with suppress(Timeout):
        lock.acquire(timeout=-1 if wait else 0)
    try:
        yield lock.is_locked
    finally:
        lock.release()
