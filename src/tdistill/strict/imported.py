"""A user's own classes and functions, named in a document by where they are: ``mine.py:Mine``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any

from tdistill.errors import InvalidValueError

_PATHS: dict[Any, str] = {}  # how what was imported was named, so that it can be named again


def is_import_path(value: Any) -> bool:
    """Whether a name is one of a user's own code.

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
    found = _dataclass(path, f"derived from {base.__name__}", lambda cls: issubclass(cls, base))
    if "name" not in vars(found):
        raise InvalidValueError(f"{path}: expected name: ClassVar[str] in the class, found none")
    _PATHS[found] = path
    return found


def import_path_of(cls: type) -> str | None:
    """How a document named an imported class; None for the classes of the library."""
    return _PATHS.get(cls)


def import_maker(path: str, method: str) -> type:
    """The dataclass that a path names, which needs no base, only a method of that name.

    Raises:
        InvalidValueError: as `import_class` does.
    """
    wanted = f"with a method {method}"
    return _dataclass(path, wanted, lambda cls: callable(getattr(cls, method, None)))


def beside(document: Any, folder: Path) -> Any:
    """A document whose import paths of files in a folder, relative to it, are made absolute.

    So code may be named that lies beside the document, from whatever folder it is read.
    """
    if isinstance(document, dict):
        return {key: beside(value, folder) for key, value in document.items()}
    if isinstance(document, list):
        return [beside(value, folder) for value in document]
    if not is_import_path(document) or "\0" in document:
        return document
    place, _, name = document.rpartition(":")
    file = (folder / place).resolve()
    return f"{file}:{name}" if place.endswith(".py") and file.is_file() else document


def import_function(path: str, *arguments: str) -> Callable[..., Any]:
    """The function that a path names, as `import_class` finds it.

    Args:
        path: ``folder/file.py:function`` or ``package.module:function``.
        arguments: what it is going to be called with, in order.

    Raises:
        InvalidValueError: if there is no such file, module or function, or it takes others.

    Example:
        >>> import_function("os.path:join", "folder", "name")("a", "b")
        'a/b'
    """
    found, name = _named(path)
    wanted = f"a function {name or '(none given)'}({', '.join(arguments)})"
    if not inspect.isfunction(found):
        raise _other(path, wanted, found)
    signature = inspect.signature(found)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        found = f"{name}{signature} ({error})"
        raise InvalidValueError(f"{path}: expected {wanted}, found {found}") from error
    _PATHS[found] = path
    return found


def source_file_of(imported: Any) -> Path | None:
    """The file of an imported class or function; None for those of the library."""
    return Path(inspect.getfile(inspect.unwrap(imported))) if imported in _PATHS else None


def _named(path: str) -> tuple[Any, str]:
    """What a path leads to, None where there is nothing of that name; and the name."""
    place, _, name = path.rpartition(":")
    return getattr(_module(place, path), name, None), name


def _other(path: str, wanted: str, found: Any) -> InvalidValueError:
    place = path.rpartition(":")[0]
    what = "nothing of that name" if found is None else repr(found)
    return InvalidValueError(f"{path}: expected {wanted} in {place}, found {what}")


def source_files_of(cls: type) -> list[Path]:
    """The file of a class, and those beside it that it imports."""
    own = Path(inspect.getfile(cls))
    nodes = list(ast.walk(ast.parse(own.read_text(encoding="utf-8"))))
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    beside = (own.with_name(f"{name}.py") for name in sorted(names))
    return [own, *(file for file in beside if file.is_file())]


def _dataclass(path: str, wanted: str, fits: Callable[[type], bool]) -> type:
    found, name = _named(path)
    if not (isinstance(found, type) and fits(found)):
        raise _other(path, f"a class {name or '(none given)'} {wanted}", found)
    # `@dataclass` sets __dataclass_params__ on each class it is applied to; a base's is inherited.
    if "__dataclass_params__" not in vars(found):
        raise InvalidValueError(f"{path}: expected a dataclass; write @dataclass(frozen=True)")
    return found


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
            with _importable(file.parent):
                spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, KeyboardInterrupt):
                raise
            frames = [f.lineno for f in extract_tb(error.__traceback__) if f.filename == name]
            line = getattr(error, "lineno", None) or (frames or [0])[-1]
            raise InvalidValueError(
                f"{path}: expected code that can be imported, but line {line} of {file} raises "
                f"{type(error).__name__}: {error}"
            ) from error
    return sys.modules[name]


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours, as one that is started as a script may."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
