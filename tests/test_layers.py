"""The architecture, enforced on the syntax tree: imports point down and in no circle, every public
name is defined once, and some things are banned."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tdistill

# Top to bottom. A module imports itself and the lines below its own; two names on one line are
# peers and do not import each other. `tdistill` is the root package, which only holds the version;
# `public` is its stub, the list of public names, which load on first use.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__", "public"),
    ("cli",),
    ("run",),
    ("planning",),
    ("report", "recipe", "ready"),
    ("evaluation",),
    ("training",),
    ("teacher",),
    ("evidence",),
    ("data", "models"),
    ("processes",),
    ("files", "progress", "tabular", "strict", "demo"),
    ("core", "checks", "hashing", "plain_json"),
    ("errors",),
    ("tdistill",),
)
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}
CORE_MAY_IMPORT = {"torch", "jaxtyping", "lazy_loader", "tdistill"} | set(sys.stdlib_module_names)
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"}
MAX_LINES = 400

PACKAGE = Path(tdistill.__file__).parent
TESTS = Path(__file__).parent

Check = Callable[[str, str], Iterator[str]]
"""Takes a path inside the package, as text, and its source; gives the problems found."""
WholeCheck = Callable[[Mapping[str, str]], list[str]]
"""Takes the sources by their paths; gives the problems found."""


def layer_of(path: str) -> str:
    """``core/top_p.py`` is of layer core, ``files.py`` of lm, ``__init__.py`` of the root."""
    if path == "__init__.pyi":
        return "public"
    name = path.split("/", maxsplit=1)[0].rsplit(".", 1)[0]
    return "tdistill" if name == "__init__" else name


def imports(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, at the top, in functions, or for typing only."""
    package = ["tdistill", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def upward_imports(path: str, source: str) -> Iterator[str]:
    mine = layer_of(path)
    if mine not in DEPTH:
        yield f"{path}: layer '{mine}' is unknown; give it a line in LAYERS of tests/test_layers.py"
        return
    for line, name in imports(path, source):
        parts = name.split(".")
        if parts[0] != "tdistill":
            continue
        other = parts[1] if len(parts) > 1 and not parts[1].startswith("__version") else "tdistill"
        if other not in DEPTH:
            yield f"{path}:{line}: imports '{name}' of no layer in LAYERS of tests/test_layers.py"
        elif other != mine and DEPTH[other] <= DEPTH[mine]:
            yield f"{path}:{line}: '{mine}' imports '{other}', which is not below it in LAYERS"


def impure_core(path: str, source: str) -> Iterator[str]:
    if layer_of(path) != "core":
        return
    for line, name in imports(path, source):
        if name.split(".")[0] not in CORE_MAY_IMPORT:
            yield f"{path}:{line}: core imports '{name}'; allowed: torch, jaxtyping, stdlib"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in {"detach", "detach_"}:
            yield f"{path}:{node.lineno}: core stops a gradient; that belongs to training"


def unsafe_loading(path: str, source: str) -> Iterator[str]:
    for line, name in imports(path, source):
        if name.split(".")[0] in UNSAFE_MODULES:
            yield f"{path}:{line}: imports '{name}', which runs code from files"
        if name in {"torch.load", "torch.serialization.load"}:
            yield f"{path}:{line}: import torch and call torch.load, so that its use can be checked"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "torch.load",
            "torch.serialization.load",
        }:
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if keywords.get("weights_only") != "True":
                yield f"{path}:{node.lineno}: torch.load without weights_only=True"


def too_long(path: str, source: str) -> Iterator[str]:
    lines = len(source.splitlines())
    if lines > MAX_LINES:
        yield f"{path}: {lines} lines, at most {MAX_LINES}; split it"


def circles(sources: Mapping[str, str]) -> list[str]:
    """A circle of imports between files, if there is one; ``__init__.pyi`` is a file too."""
    graph = {
        path: {file for _, name in imports(path, text) for file in files_of(name, sources)} - {path}
        for path, text in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def files_of(name: str, sources: Mapping[str, str]) -> Iterator[str]:
    """The files that define an imported name; a name of a stub is looked up in the stub."""
    first, *inside = name.split(".")
    if first != "tdistill":
        return
    module = "/".join(inside)
    init, stub = (f"{module}/__init__{end}".lstrip("/") for end in (".py", ".pyi"))
    if f"{module}.py" in sources:
        yield f"{module}.py"
    elif init in sources:
        yield from (file for file in (init, stub) if file in sources)
    elif inside:
        yield from _files_of_attribute(name, sources)


def _files_of_attribute(name: str, sources: Mapping[str, str]) -> Iterator[str]:
    package, attribute = name.rsplit(".", 1)
    stub = "/".join([*package.split(".")[1:], "__init__.pyi"])
    for _, target in imports(stub, sources.get(stub, "")):
        if target.rsplit(".", 1)[1] == attribute:
            yield from files_of(target, sources)
            return
    yield from (file for file in files_of(package, sources) if file.endswith(".py"))


def names_defined_twice(sources: Mapping[str, str]) -> list[str]:
    """Public classes and functions that two files define; each is the name of one thing."""
    places: dict[str, list[str]] = {}
    for path, text in sources.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path)
    return [f"{name}: {', '.join(files)}" for name, files in places.items() if len(files) > 1]


def sources_under(root: Path) -> dict[str, str]:
    """Text of every source file, by its path."""
    files = (file for end in ("py", "pyi") for file in root.rglob(f"*.{end}"))
    return {f.relative_to(root).as_posix(): f.read_text(encoding="utf-8") for f in sorted(files)}


def problems(check: Check, root: Path) -> list[str]:
    return [found for path, text in sources_under(root).items() for found in check(path, text)]


@pytest.mark.parametrize("check", [upward_imports, impure_core, unsafe_loading, too_long])
def test_the_package(check: Check):
    assert problems(check, PACKAGE) == []


@pytest.mark.parametrize("check", [circles, names_defined_twice])
def test_the_package_as_a_whole(check: WholeCheck):
    assert check(sources_under(PACKAGE)) == []


def test_no_test_file_is_too_long():
    assert problems(too_long, TESTS) == []


def test_every_core_module_has_its_test_file():
    modules = {file.stem for file in (PACKAGE / "core").glob("*.py")} - {"__init__"}
    tested = {file.stem.removeprefix("test_") for file in (TESTS / "core").glob("test_*.py")}
    assert modules == tested


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (upward_imports, "core/value.py", "from tdistill.training import objectives"),
        (upward_imports, "files.py", "def f():\n    import tdistill.cli"),
        (upward_imports, "teacher/a.py", "from tdistill.training.train import Batch"),
        (upward_imports, "teacher/a.py", "from ..training import train"),
        (upward_imports, "teacher/a.py", "from .. import training"),
        (upward_imports, "errors.py", "from tdistill import core"),
        (upward_imports, "__init__.py", "from tdistill.errors import TdistillError"),
        (upward_imports, "__init__.pyi", "from .__main__ import main"),
        (upward_imports, "surprise.py", ""),
        (upward_imports, "cli/run.py", "import tdistill.surprise"),
        (impure_core, "core/value.py", "import numpy as np"),
        (impure_core, "core/value.py", "y = x.detach()"),
        (unsafe_loading, "files.py", "import pickle"),
        (unsafe_loading, "files.py", "from pickle import loads"),
        (unsafe_loading, "files.py", "from torch import load"),
        (unsafe_loading, "files.py", "import torch\ntorch.load(f)"),
        (unsafe_loading, "files.py", "import torch\ntorch.load(f, weights_only=False)"),
        (too_long, "files.py", "\n" * 401),
    ],
)
def test_each_rule_can_be_broken(check: Check, path: str, source: str):
    found = list(check(path, source))
    assert len(found) == 1
    assert found[0].startswith(path)


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (upward_imports, "cli/run.py", "from tdistill import __version__, run"),
        (upward_imports, "__init__.pyi", "from .run import run_recipe"),
        (upward_imports, "core/value.py", "from .segments import row_index"),
        (
            upward_imports,
            "teacher/a.py",
            "from tdistill.models.language_model import LanguageModel",
        ),
        (upward_imports, "training/a.py", "from ..teacher import cache"),
        (impure_core, "core/value.py", "import math\nfrom tdistill.errors import TdistillError"),
        (impure_core, "training/a.py", "import numpy\ny = x.detach()"),
        (unsafe_loading, "files.py", "import torch\ntorch.load(f, weights_only=True)"),
        (too_long, "files.py", "\n" * 400),
    ],
)
def test_no_rule_forbids_what_is_allowed(check: Check, path: str, source: str):
    assert list(check(path, source)) == []


@pytest.mark.parametrize(
    ("check", "sources"),
    [
        (circles, {"a.py": "import tdistill.b", "b.py": "from tdistill.a import x"}),
        (
            circles,
            {"r/a.py": "from .b import x", "r/b.py": "def f():\n    from tdistill.r import a"},
        ),
        (
            circles,
            {
                "a.py": "if TYPE_CHECKING:\n    from tdistill.b import X",
                "b.py": "from tdistill.c import y",
                "c.py": "from tdistill.a import z",
            },
        ),
        (
            circles,
            {"r/__init__.py": "from tdistill.r.a import x", "r/a.py": "from tdistill.r import y"},
        ),
        (
            circles,  # the name of a stub is the file that defines it
            {
                "core/__init__.py": "",
                "core/__init__.pyi": "from .a import x\nfrom .b import y",
                "core/a.py": "from tdistill.core import y",
                "core/b.py": "from tdistill.core import x",
            },
        ),
        (
            circles,  # the whole package leads to all of its files
            {
                "core/__init__.py": "",
                "core/__init__.pyi": "from .a import x",
                "core/a.py": "from tdistill import core",
            },
        ),
        (names_defined_twice, {"a.py": "class Row: ...", "b.py": "class Row: ..."}),
        (names_defined_twice, {"a.py": "def load(): ...", "b.py": "class load: ..."}),
    ],
)
def test_each_rule_of_the_whole_can_be_broken(check: WholeCheck, sources: dict[str, str]):
    assert len(check(sources)) == 1


@pytest.mark.parametrize(
    ("check", "sources"),
    [
        (circles, {"a.py": "import tdistill.b", "b.py": "from tdistill.c import x", "c.py": ""}),
        (
            circles,
            {
                "__init__.py": "",
                "__init__.pyi": "from .a import run",
                "a.py": "from tdistill import __version__, core",
                "core/__init__.py": "",
                "core/__init__.pyi": "from .b import x\nfrom .c import y",
                "core/b.py": "from tdistill.core import y",
                "core/c.py": "",
            },
        ),
        (names_defined_twice, {"a.py": "def _f(): ...", "b.py": "def _f(): ..."}),
        (names_defined_twice, {"a.py": "from tdistill.b import f", "b.py": "def f(): ..."}),
        (names_defined_twice, {"a.py": "class A:\n    def f(): ...", "b.py": "def f(): ..."}),
    ],
)
def test_no_rule_of_the_whole_forbids_what_is_allowed(check: WholeCheck, sources: dict[str, str]):
    assert check(sources) == []
