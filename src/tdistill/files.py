"""Names of files and folders that recipes use, and fingerprints of what is there. Torch-free."""

from __future__ import annotations

import glob
import hashlib
from importlib.util import find_spec
from pathlib import Path

from tdistill.errors import ModelError

_PACKAGE = "package:"
_WHOLE_BELOW = 1 << 20


def resolve_path(path: str) -> str:
    """A model's path: ``package:NAME`` becomes the folder of that installed package.

    The package is found, not imported.

    Raises:
        ModelError: if the package is not installed, or a path that is clearly local does not exist.
    """
    if path.startswith(_PACKAGE):
        try:
            spec = find_spec(path.removeprefix(_PACKAGE))
        except (ImportError, ValueError):  # a parent package is missing, or the name is empty
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"{path}: expected an installed package of that name, found none")
        return str(spec.submodule_search_locations[0])
    local = Path(path).expanduser()
    if not local.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ModelError(f"{path}: expected a folder with a model, found nothing there")
    return str(local) if local.exists() else path


def fingerprint(path: str | None) -> str:
    """Changes when what is named does: content of small files, size and time of large ones.

    A folder stands for the files in it, a pattern such as ``texts/*.txt`` for those it matches.

    Names that are not local files (hub names, ``demo:SPLIT``) stand for themselves, the latter with
    the content of the packaged file.
    """
    if path is None:
        return "none"
    matches = sorted(glob.glob(path)) if glob.has_magic(path) else []  # noqa: PTH207
    if matches:
        parts = "\n".join(f"{match}={fingerprint(match)}" for match in matches)
        return hashlib.sha256(parts.encode()).hexdigest()[:16]
    if path.startswith("demo:"):
        return f"{path}={fingerprint(str(Path(__file__).parent / 'demo' / 'prompts.jsonl'))}"
    try:
        place = Path(resolve_path(path))
    except ModelError:
        return path
    if not place.exists():
        return path
    files = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name}:{stat.st_size}".encode())
        whole = stat.st_size < _WHOLE_BELOW
        digest.update(file.read_bytes() if whole else str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
