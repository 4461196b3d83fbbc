"""Paths that recipes name, fingerprints of what is there, whole writes and locks. Torch-free."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from tdistill.errors import ModelError, StorageError, TdistillError, excerpt
from tdistill.hashing import file_sample_sha256, file_sha256, key_of

DEMO_PREFIX = "demo:"
HUB_PREFIX = "hub:"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PACKAGE = "package:"
_WORLD = "world:"
_WORDS = ("", "auto")
_PREFIXES = (_PACKAGE, _WORLD, DEMO_PREFIX, HUB_PREFIX)  # of what is named, not found by its path
_WEIGHTS = (".safetensors", ".gguf")
_WHOLE_BELOW = 1 << 24
_FULL = ("No space left on device", "File too large", "Disk quota exceeded")
_LOCKLESS = (None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # None: as filelock says it
_FULL_IN_TORCH = ("PytorchStreamWriter failed", "inline_container.cc")  # whose cause it hides


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
    if path.startswith(HUB_PREFIX):
        if not _HUB_NAME.fullmatch(path.removeprefix(HUB_PREFIX)):
            raise ModelError(f"{path}: expected hub:NAME or hub:OWNER/NAME")
        return path
    local = expanded(path)
    if path and local.exists():
        return str(local)
    cure = "give the folder of a model, or hub:OWNER/NAME for one of the Hugging Face hub"
    if _HUB_NAME.fullmatch(path):
        cure = f"if you mean the model of that name on the Hugging Face hub, write hub:{path}"
    where = "" if local.is_absolute() else f" (searched in {Path.cwd()})"
    raise ModelError(f"{path}: expected a folder with a model, found nothing there{where}; {cure}")


def expanded(path: str) -> Path:
    """A path whose ``~`` is the home of a user; as it stands where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - the other one raises


def hub_name(path: str) -> str | None:
    """The name of ``hub:NAME``; None for what is on this machine.

    Example:
        >>> hub_name("hub:owner/model"), hub_name("model")
        ('owner/model', None)
    """
    return path.removeprefix(HUB_PREFIX) if path.startswith(HUB_PREFIX) else None


def path_from(folder: Path, path: str) -> str:
    """A path that a file in a folder names, absolute; what has a prefix is no path.

    Example:
        >>> path_from(Path("/recipes"), "data/train.jsonl"), path_from(Path("x"), "demo:train")
        ('/recipes/data/train.jsonl', 'demo:train')
    """
    if path in _WORDS or path.startswith((*_PREFIXES, "~")):
        return path
    return os.path.normpath(folder.absolute() / path)


def last_name(path: str) -> str:
    """A local path's last name; what has a prefix, and any other text, as it is.

    Example:
        >>> last_name("/home/me/train.jsonl"), last_name("hub:a/b"), last_name("/x/mine.py:Mine")
        ('train.jsonl', 'hub:a/b', 'mine.py:Mine')
    """
    return Path(path).name if path.startswith("~") or os.path.isabs(path) else path  # noqa: PTH117


def in_world(path: str | None) -> bool:
    """Whether a path is ``world:NAME``: what the world of a run makes by that name."""
    return path is not None and path.startswith(_WORLD)


def place_in_world(path: str, world: Path) -> str:
    """``world:NAME`` as the path in the folder of a world; other paths as they are."""
    return str(world / path.removeprefix(_WORLD)) if in_world(path) else path


def fingerprint(path: str | None) -> str:
    """Changes when the content of what is named does, and only then: not with its place or time.

    A folder stands for the files in it, hidden ones left out, a pattern such as ``texts/*.txt`` for
    those it matches. Of weights a sample is read.

    Names that are not local files (``hub:NAME``, ``demo:SPLIT``) stand for themselves, the latter
    with the content of the packaged file.
    """
    if path is None:
        return "none"
    pattern = str(expanded(path))
    if glob.has_magic(pattern) and not Path(pattern).exists():
        matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        if matches:
            return key_of([(Path(match).name, fingerprint(match)) for match in matches])
    if path.startswith(DEMO_PREFIX):
        return f"{path}={fingerprint(str(Path(__file__).parent / 'demo' / 'prompts.jsonl'))}"
    try:
        place = Path(resolve_path(path))
    except ModelError:
        return path
    return _content_of(place) if place.exists() else path


def _content_of(place: Path) -> str:
    if place.is_file():
        stat = place.stat()
        return _hashed(place, stat.st_size, stat.st_mtime_ns)
    files = [p for p in place.iterdir() if p.is_file() and not p.name.startswith(".")]
    return key_of([(file.name, _content_of(file)) for file in sorted(files)])


@lru_cache(maxsize=1024)
def _hashed(file: Path, size: int, changed: int) -> str:
    """The hash of a file as it was at a time."""
    weights = file.suffix in _WEIGHTS and size > _WHOLE_BELOW
    return file_sample_sha256(file) if weights else file_sha256(file)


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
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)  # on a full disk it would only be in the way
        raise
    partial.replace(path)
    _sync_folder(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Let a file be at a second place too, without a copy of it where the disk can do that.

    Only for files that are never written again, but replaced.
    """
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(source)
    except OSError:  # another disk, or one without links, or somebody else's file
        with replacing(target) as copied:
            shutil.copyfile(source, copied)
        return
    partial.replace(target)
    _sync_folder(target.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder to write beside ``path``, which takes its place if nothing is raised.

    So a folder of a name is whole, or it is not there: what is in the way goes last.

    Raises:
        StorageError: if there is no room, or no permission, to write it.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        told = None if isinstance(error, TdistillError) else storage_error(error, path)
        if told is None:
            raise
        raise told from error
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)
    _sync_folder(path.parent)


def storage_error(error: BaseException, place: Path) -> StorageError | None:
    """What is wrong with the disk, in words; None where the error is of another kind.

    Args:
        error: of the system, or of a library whose text repeats the system's.
        place: what was written to, if the error does not say.
    """
    number, text = getattr(error, "errno", None), str(error)
    reason = next((told for told in _FULL if told in text), None)
    if any(told in text for told in _FULL_IN_TORCH):
        reason = "a checkpoint could not be written to its end"
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or reason is not None:
        found = reason or os.strerror(number or errno.ENOSPC)
        return StorageError(
            f"{place}: expected room to write, found {free_bytes(place) / 1e9:.1f} GB free "
            f"({found}); what is finished stays: make room, and the same command goes on"
        )
    at = Path(getattr(error, "filename", None) or place)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"{at}: expected a place that may be written, found none ({os.strerror(number)}); "
            "name another folder, or change its permissions"
        )
    if number in (errno.ENAMETOOLONG, errno.ELOOP):
        shown = excerpt(str(at))
        return StorageError(
            f"{shown}: expected a path that can be opened, found none ({os.strerror(number)}); "
            "correct it"
        )
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return StorageError(
            f"{at}: expected {'a file' if number == errno.EISDIR else 'a folder'}, found something "
            f"else ({os.strerror(number)}); name another place, or remove it"
        )
    return None


def free_bytes(place: Path) -> int:
    """Room on the disk that a path is, or will be, on."""
    there = existing_parent(place)
    return shutil.disk_usage(there).free


def existing_parent(place: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    there = place.absolute()
    while not there.exists():
        there = there.parent
    return there


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
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, Timeout) or getattr(error, "errno", None) not in _LOCKLESS:
                raise
            raise StorageError(
                f"{path}: expected a file system with locks, by which processes share a folder, "
                "found one without; name a folder on another, or mount it with locks"
            ) from error
    try:
        yield lock.is_locked
    finally:
        lock.release()
