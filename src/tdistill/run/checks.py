"""What is looked at before any work is spent: by `tdistill doctor`, and first by every run.

The quick checks read configurations and names of files; those of the groundwork that follow them
load data and the teacher.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tdistill.checks import check
from tdistill.data import Example
from tdistill.data.config import AUTO
from tdistill.data.sources import matching_paths
from tdistill.errors import InvalidValueError, StorageError, TdistillError
from tdistill.evaluation.tasks import check_tasks
from tdistill.files import (
    DEMO_PREFIX,
    HUB_PREFIX,
    existing_parent,
    free_bytes,
    in_world,
    resolve_path,
    storage_error,
)
from tdistill.models.architecture import architecture_of
from tdistill.models.head_form import head_form
from tdistill.models.language_model import load_config
from tdistill.models.readers import open_reader
from tdistill.models.row_trials import check_reading
from tdistill.planning.plan import evidence_bytes
from tdistill.planning.scale import assumed_set_size
from tdistill.processes import process_count
from tdistill.recipe import Recipe, placed
from tdistill.run.folders import world_folder
from tdistill.run.groundwork import Groundwork
from tdistill.training.arguments import check_in_shards, launched_in_shards
from tdistill.training.folding import head_scale
from tdistill.training.student import layer_stack

Level = Literal["fine", "doubtful", "wrong"]

_USES = {"train": "train on", "valid": "choose on", "test": "judge on"}
_BYTES_PER_WEIGHT = 4
_EXTRAS = {"httpx2": "'tdistill[server]'"}
_EXTRAS |= {name: f"'tdistill[{name}]'" for name in ("peft", "vllm", "gguf")}
_CHECKPOINTS = 2 * 3  # two of them, each with the weights and both moments of Adam


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: whether a run can rely on it.
        what: the part of the recipe.
        text: for people.
        error: what it would end with, where it is wrong.
    """

    level: Level
    what: str
    text: str
    error: TdistillError | None = None


class Doubt(Exception):
    """What a person should know before the run is started."""


def findings(checks: dict[str, Callable[[], str]]) -> Iterator[Finding]:
    """Do checks, each of which returns what is fine, or raises; a problem is told once.

    Args:
        checks: by the part of the recipe that they look at.
    """
    told: set[str] = set()
    for what, look in checks.items():
        try:
            yield Finding("fine", what, look())
        except Doubt as doubt:
            yield Finding("doubtful", what, str(doubt))
        except (TdistillError, OSError) as caught:
            known = isinstance(caught, TdistillError)
            error = caught if known else storage_error(caught, Path.cwd())
            if error is None:
                raise
            if str(error) not in told:
                yield Finding("wrong", what, str(error), error)
            told.add(str(error))


def quick_checks(recipe: Recipe, folder: Path) -> dict[str, Callable[[], str]]:
    """The checks that load nothing.

    Args:
        recipe: what is to be done.
        folder: of the run; nothing is written.
    """
    return {
        "folder": lambda: _folder(folder),
        "models": lambda: _models(recipe, folder),
        "data": lambda: _data(recipe, folder),
        "packages": lambda: _packages(recipe),
        "training": lambda: _training(recipe),
    }


def refuse_wrong(found: list[Finding]) -> None:
    """Raise what is wrong, all at once.

    Raises:
        TdistillError: of the kind of the only problem; an InvalidValueError names several.
    """
    wrong = [finding for finding in found if finding.error is not None]
    if len(wrong) == 1 and wrong[0].error is not None:
        raise wrong[0].error
    if wrong:
        lines = "".join(f"\n  {finding.what}: {finding.text}" for finding in wrong)
        raise InvalidValueError(f"expected a recipe that can be done, found problems:{lines}")


def _folder(folder: Path) -> str:
    there = existing_parent(folder)
    if not there.is_dir():
        raise StorageError(
            f"--out {folder}: expected a folder, found a file at {there}; name another"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(
            f"--out {folder}: expected a folder that may be written, found {there} without that "
            "permission; name another"
        )
    return f"{folder}, {free_bytes(folder) / 1e9:.1f} GB free"


def _models(recipe: Recipe, folder: Path) -> str:
    made = placed(recipe, world_folder(recipe, folder))
    seen = []
    for field, path, original in (
        ("teacher.path", made.teacher.path, recipe.teacher.path),
        ("student.path", made.student.path, recipe.student.path),
    ):
        if path is None or (in_world(original) and not Path(path).exists()):
            continue
        if recipe.teacher.gguf_file is not None and field == "teacher.path":
            file = Path(resolve_path(path)) / recipe.teacher.gguf_file
            check("teacher.gguf_file", file.is_file(), f"a file in {file.parent}", file.name)
            seen.append(f"{field} {file.name}")
        else:
            seen.append(f"{field} {architecture_of(load_config(path))}")
    return ", ".join(seen) or "made by the world first"


def _data(recipe: Recipe, folder: Path) -> str:
    made = placed(recipe, world_folder(recipe, folder)).data
    seen = []
    for name in ("train", "valid", "test", "lm_text"):
        source, original = getattr(made, name), getattr(recipe.data, name)
        unmade = in_world(original) and not Path(source or "").exists()
        if source in (None, AUTO) or unmade or source.startswith((DEMO_PREFIX, HUB_PREFIX)):
            continue
        matching_paths(source)
        seen.append(name)
    return f"{', '.join(seen)} found" if seen else "none are files of the user"


def _packages(recipe: Recipe) -> str:
    from transformers.integrations import integration_utils as trackers

    wanted: dict[str, str] = {}
    if recipe.training.lora is not None:
        wanted["training.lora"] = "peft"
    if recipe.teacher.weights.quantise is not None:
        wanted["teacher.weights.quantise"] = "bitsandbytes"
    if recipe.teacher.backend == "server":
        wanted["teacher.backend"] = "httpx2"
    if recipe.teacher.backend == "vllm":
        wanted["teacher.backend"] = "vllm"
    if recipe.teacher.gguf_file is not None:
        wanted["teacher.gguf_file"] = "gguf"
    absent = {field: name for field, name in wanted.items() if find_spec(name) is None}
    cures = " ".join(sorted({_EXTRAS.get(name, name) for name in absent.values()}))
    expected = f"the packages {', '.join(absent.values())} to be installed"
    check(", ".join(absent), not absent, expected, f"none: pip install {cures}")
    known = list(trackers.INTEGRATION_TO_CALLBACK)
    usable = ("all", "none", *trackers.get_available_reporting_integrations())
    for name in recipe.training.report_to:
        field = f"training.report_to: {name}"
        check(field, name in ("all", "none", *known), f"one of {', '.join(known)}", "another name")
        cure = "none: pip install 'tdistill[trackers]', or the package of its name"
        check(field, name in usable, f"the package of {name} to be installed", cure)
    return ", ".join((*wanted.values(), *recipe.training.report_to)) or "none beyond its own"


def _training(recipe: Recipe) -> str:
    phases = {"training": recipe.training}
    if recipe.start is not None:
        phases["start.training"] = recipe.start.training
    for name, config in phases.items():
        config.rows_of_process(process_count(), name=f"{name}.batch_size")
    for label, objective in recipe.objectives.items() if launched_in_shards() else ():
        check_in_shards(objective, recipe.training, f"objectives.{label}")
    for name, config in phases.items():
        if config.warmup > config.steps // 2:
            raise Doubt(
                f"{name}.warmup_steps: {config.warmup} of {config.steps} updates, so the learning "
                "rate is reached late or never; a tenth is usual"
            )
    return ", ".join(f"{name}: {config.steps} updates" for name, config in phases.items())


def thorough_checks(ground: Groundwork, folder: Path) -> dict[str, Callable[[], str]]:
    """The checks that load the data and the models, in the order in which a run needs them.

    Args:
        ground: of the run.
        folder: where caches, models and checkpoints will go.
    """
    given = {"responses": lambda: _responses(ground)} if ground.recipe.rollouts.given else {}
    teacher = _teacher if ground.at_hand else _engine
    return {
        "prompts": lambda: _prompts(ground),
        **given,
        "teacher": lambda: teacher(ground),
        "student": lambda: _student(ground),
        "tasks": lambda: _tasks(ground),
        "room": lambda: _room(ground, folder),
    }


def _prompts(ground: Groundwork) -> str:
    examples = ground.load_examples()
    return ", ".join(f"{len(examples[split])} to {use}" for split, use in _USES.items())


def _responses(ground: Groundwork) -> str:
    supplies = ground.find_given()
    return ", ".join(f"{split}: {len(supply.shards)} shards" for split, supply in supplies.items())


def _teacher(ground: Groundwork) -> str:
    """Loads it, and tries every way in which it is going to be read."""
    teacher = ground.load_teacher()
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        reader = type(open_reader(teacher, 2)).__name__
        check_reading(teacher.model)
        head = "linear" if head_form(teacher.model) is not None else "read through full logits"
    if doubts:
        raise Doubt("; ".join(str(doubt.message) for doubt in doubts))
    ends = ", ".join(str(teacher.tokenizer.convert_ids_to_tokens(i)) for i in teacher.end_ids)
    return (
        f"{type(teacher.model).__name__}, {teacher.num_parameters:,} parameters; output layer "
        f"{head}; decoded by {reader}; responses end at {ends}"
    )


def _engine(ground: Groundwork) -> str:
    """Asks who has the teacher for what a run will ask for."""
    longest = {split: _longest(rows) for split, rows in ground.load_examples().items()}
    asked = max(longest[split] for split in ("test", "valid"))  # a temperature is chosen on these
    return ground.check_engine(max(longest.values()), asked)


def _longest(examples: Sequence[Example]) -> int:
    """Tokens of the longest prompt."""
    return max((len(example.prompt_ids) for example in examples), default=1)


def _student(ground: Groundwork) -> str:
    ground.check_student()
    recipe = ground.recipe
    if any(objective.folding for objective in recipe.objectives.values()):
        own = recipe.student.layers is None
        if own or ground.at_hand:
            head_scale((ground.load_student() if own else ground.load_teacher()).model)
    return f"about {student_parameters(ground):,} parameters"


def _tasks(ground: Groundwork) -> str:
    config = ground.recipe.evaluation
    return check_tasks(config) if config.tasks else "none"


def student_parameters(ground: Groundwork) -> int:
    """Parameters of the student, from the teacher's layers or from its own checkpoint."""
    teacher, layers = ground.load_face(), ground.recipe.student.layers
    if layers is None:
        return ground.load_student().num_parameters
    _, stack = layer_stack(teacher.model)
    of_layers = sum(weight.numel() for weight in stack.parameters())
    return teacher.num_parameters - of_layers + of_layers * layers // len(stack)


def _room(ground: Groundwork, folder: Path) -> str:
    prompts = sum(len(found) for found in ground.load_examples().values())
    vocabulary = ground.load_face().vocabulary_size
    need = planned_bytes(ground.recipe, student_parameters(ground), prompts, vocabulary)
    free = free_bytes(folder)
    if need > free:
        raise StorageError(
            f"{folder}: expected room for caches, models and checkpoints, about "
            f"{need / 1e9:.1f} GB, found {free / 1e9:.1f} GB free; name another folder, make room, "
            "or set keep_models: false"
        )
    return f"about {need / 1e9:.2f} GB of {free / 1e9:.1f} GB free"


def planned_bytes(recipe: Recipe, parameters: int, prompts: int, vocabulary: int) -> int:
    """Room on the disk that a run asks for, from above: caches, models, checkpoints.

    All prompts and responses are taken to be as long as they may be, and no set to be larger than
    those of a small teacher.

    Args:
        recipe: what is to be done.
        parameters: of the student.
        prompts: to sample from.
        vocabulary: of the teacher.
    """
    caches = evidence_bytes(
        recipe.rollouts,
        vocabulary,
        prompts=prompts,
        prompt_tokens=recipe.data.max_prompt_tokens,
        response_tokens=recipe.rollouts.max_new_tokens,
        set_size=assumed_set_size(recipe.rollouts.capture),
    )
    each = recipe.seeds * (len(recipe.objectives) + 1) if recipe.keep_models else 2
    models = each + 2  # the untrained one and the copy of the result
    return round(caches) + _BYTES_PER_WEIGHT * parameters * (models + _CHECKPOINTS)
