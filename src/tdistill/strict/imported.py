"""Classes of a user's own, named in a document by where they are: ``mine.py:MyClass``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from tdistill.errors import InvalidValueError

_PATHS: dict[type, str] = {}  # how each imported class was named, so that it can be named again


def is_import_path(value: Any) -> bool:
    """Whether a name is one of a user's own class.

    Example:
        >>> is_import_path("mine.py:MyObjective"), is_import_path("kd")
        (True, False)
    """
    return isinstance(value, str) and ":" in value


def import_class(path: str, base: type) -> type:
    """The class that a path names: ``folder/file.py:Class`` or ``package.module:Class``.

    The code of the file runs: only a path that the user wrote may be given.

    Raises:
        InvalidValueError: if there is no such file, module or class, or the class is no dataclass
            derived from ``base`` with a ``name`` of its own.
    """
    place, _, name = path.partition(":")
    found = getattr(_module(place, path), name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InvalidValueError(
            f"{path}: expected a class {name or '(none given)'} derived from {base.__name__} in "
            f"{place}, found {'nothing of that name' if found is None else repr(found)}"
        )
    # `@dataclass` sets __dataclass_params__ on each class it is applied to; a base's is inherited.
    if "__dataclass_params__" not in vars(found):
        raise InvalidValueError(f"{path}: expected a dataclass; write @dataclass(frozen=True)")
    if "name" not in vars(found):
        raise InvalidValueError(f"{path}: expected name: ClassVar[str] in the class, found none")
    _PATHS[found] = path
    return found


def import_path_of(cls: type) -> str | None:
    """How a document named an imported class; None for the classes of the library."""
    return _PATHS.get(cls)


def source_file_of(cls: type) -> Path | None:
    """The file of an imported class; None for the classes of the library."""
    return Path(inspect.getfile(cls)) if cls in _PATHS else None


def _module(place: str, path: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise InvalidValueError(
                f"{path}: expected an importable module {place} or a file ending in .py; {error}"
            ) from error
    file = Path(place).expanduser().resolve()
    if not file.is_file():
        raise InvalidValueError(f"{path}: expected a file {file}, found none")
    name = str(file)  # no module of a package is called so
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
