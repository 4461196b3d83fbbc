"""Ready recipes, as `tdistill init` writes them: a template each, and the code that one names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

RECIPES = {
    "laptop": "a small teacher and half its layers, on a few CPU cores",
    "one-gpu": "a teacher of one to eight billion parameters, on one GPU",
    "eight-gpus": "a larger job, trained by the eight GPUs of one machine together",
    "served-teacher": "a teacher behind a vLLM-compatible server, and a student of your own",
    "arithmetic": "sums that the run makes itself, with a check of every answer",
    "own-objective": "a loss of your own beside kd, on the same evidence",
}
"""What each recipe is for, by its name."""

COMPANIONS = {"arithmetic": "sums.py", "own-objective": "own_objective.py"}
"""The file of code that goes beside a recipe."""


def ready_recipe(name: str, values: Mapping[str, Any]) -> str:
    """The text of a recipe, comments included.

    Args:
        name: one of `RECIPES`.
        values: what its template asks for; written as YAML by its filter ``yaml``, or as words of a
            comment by ``words``, so that a name of a stranger's is neither more.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_file),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"yaml": _as_yaml, "words": _as_words}
    template = environment.get_template(f"{name}.yaml.j2")
    return template.render(title=f"{name}: {RECIPES[name]}", **values)


def companion(name: str) -> tuple[str, str] | None:
    """Name and text of the file that a recipe needs beside it; None if it needs none."""
    file = COMPANIONS.get(name)
    return None if file is None else (file, _file(file))


def _file(name: str) -> str:
    return (resources.files("tdistill.ready") / name).read_text(encoding="utf-8")


def _as_yaml(value: Any) -> str:
    """A value as YAML in one line.

    Example:
        >>> _as_yaml("a: b"), _as_yaml("models/teacher"), _as_yaml(3)
        ("'a: b'", 'models/teacher', '3')
    """
    import yaml

    return yaml.safe_dump([value], default_flow_style=True, width=1 << 20)[1:-2]


def _as_words(text: str) -> str:
    """A text that stays inside the comment that it is put into."""
    from tdistill.errors import excerpt

    return excerpt(text, 300).encode("ascii", "backslashreplace").decode()
