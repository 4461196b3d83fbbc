"""Recipes: one YAML file over typed dataclasses that says all of a run. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tdistill import strict
from tdistill.checks import check, check_at_least
from tdistill.data.config import DataConfig
from tdistill.errors import InvalidValueError, RecipeError, excerpt
from tdistill.evaluation.config import EvaluationConfig
from tdistill.files import in_world, path_from, place_in_world
from tdistill.models.weights import DType, WeightsConfig
from tdistill.teacher.config import Backend, Incomplete, RolloutConfig, ServerConfig, VllmConfig
from tdistill.training.config import LayerRule, TrainConfig
from tdistill.training.objectives import KD, SFT, AnyObjective, BellmanDistill, SeqKD

_SOURCES = ("train", "valid", "test", "lm_text")  # fields of data
_GIVEN = ("cache", "responses")  # fields of rollouts
_PATHS = {
    "teacher": ("path",),
    "student": ("path",),
    "data": _SOURCES,
    "rollouts": _GIVEN,
    "world": ("folder",),
}
_MOST_SEEDS = 1000
_LONGEST_LABEL = 64  # of an objective: names of folders and columns
_OF_OBJECTIVES = ("objectives", "distilled", "baseline")


@dataclass(frozen=True)
class WorldConfig:
    """Data and models that the run makes before all else.

    ``world:NAME`` in place of a path, of a model or of data, is what goes by that name there.
    """

    make: str  # FILE.py:CLASS, a dataclass with a method make(folder) that writes them
    settings: dict[str, int | float | bool | str | None] = field(default_factory=dict)  # its fields
    folder: str | None = None  # where it is made, so that runs may share it; null: DIR/world

    def __post_init__(self) -> None:
        """Refuse a class that cannot make it; spell its defaults out."""
        object.__setattr__(self, "settings", strict.dump(self.maker()))

    def maker(self) -> Any:
        """The instance that makes it."""
        cls = strict.import_maker(self.make, "make")
        return strict.structure(cls, self.settings, where="settings")


@dataclass(frozen=True)
class TeacherConfig:
    """The model to imitate."""

    path: str  # a folder, hub:NAME, world:NAME, or package:NAME of an installed package
    gguf_file: str | None = None  # name of a GGUF file in it; converted to safetensors once
    weights: WeightsConfig = field(default_factory=WeightsConfig)  # how transformers loads it
    # Who samples it and reads responses: transformers here, vLLM here, or a vLLM-compatible server.
    # With the latter two the folder of path gives tokenizer and configuration.
    backend: Backend = "transformers"
    server: ServerConfig = field(default_factory=ServerConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    listed_tokens: int | None = None  # that server or vLLM list at a step; null: max_set_size
    incomplete: Incomplete = "refuse"  # sets that these do not complete; score: asked for once more

    def __post_init__(self) -> None:
        """Refuse what excludes each other."""
        check_at_least(1, listed_tokens=self.listed_tokens)
        alone = self.backend == "transformers" or self.gguf_file is None
        check("gguf_file", alone, f"none with backend: {self.backend}", self.gguf_file)


@dataclass(frozen=True)
class StudentConfig:
    """The model to train: the teacher with fewer layers, or a checkpoint of the same tokenizer."""

    layers: int | None = None  # keep so many of the teacher's layers
    path: str | None = None  # or start from this folder, hub:NAME or world:NAME
    choose: LayerRule = "greedy"  # evenly spaced, the first, most influence, or least loss
    measured_tokens: int = 1024  # of teacher rows that influence and greedy read
    attention: str | None = None  # sdpa, eager, flash_attention_2, ...; null: transformers chooses
    # Of DIR/student; auto: that of the checkpoint it comes from. Training is in float32 throughout.
    served_dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Refuse both and neither."""
        one = (self.layers is None) != (self.path is None)
        found = f"layers = {self.layers} and path = {self.path}"
        check("layers, path", one, "exactly one of the two", found)
        check_at_least(1, layers=self.layers, measured_tokens=self.measured_tokens)

    @property
    def measured(self) -> bool:
        """Whether the student depends on the teacher's responses."""
        return self.layers is not None and self.choose in ("influence", "greedy")


@dataclass(frozen=True)
class StartConfig:
    """The SFT phase that makes the common start of every objective (cross-entropy)."""

    rows: Literal["references", "teacher", "both"] = "references"  # what it is trained on
    training: TrainConfig = field(default_factory=TrainConfig)


def _default_objectives() -> dict[str, AnyObjective]:
    return {"sft": SFT(), "seqkd": SeqKD(), "kd": KD(), "bellman_distill": BellmanDistill()}


@dataclass(frozen=True)
class Recipe:
    """A whole run: teacher, student, data, evidence, objectives, evaluation."""

    teacher: TeacherConfig
    student: StudentConfig
    world: WorldConfig | None = None  # made by the run itself; null: all that it reads is there
    data: DataConfig = field(default_factory=DataConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    start: StartConfig | None = field(default_factory=StartConfig)  # null: no SFT phase
    training: TrainConfig = field(default_factory=TrainConfig)  # of every objective alike
    objectives: dict[str, AnyObjective] = field(default_factory=_default_objectives)
    distilled: str = "bellman_distill"  # the objective whose student goes to DIR/student
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seeds: int = 1  # training seeds, from training.seed and start.training.seed upwards
    baseline: str | None = None  # objective that the others are compared with; null: the first
    keep_models: bool = True  # false: the weights of a model go once it is judged

    def __post_init__(self) -> None:
        """Refuse impossible combinations."""
        check("seeds", 1 <= self.seeds <= _MOST_SEEDS, f"from 1 to {_MOST_SEEDS}", self.seeds)
        known = f"one of the objectives ({', '.join(self.objectives)})"
        check("distilled", self.distilled in self.objectives, known, self.distilled)
        baseline = self.baseline
        check("baseline", baseline is None or baseline in self.objectives, known, baseline)
        folded = {label.casefold(): label for label in self.objectives}
        for label in self.objectives:
            other = folded[label.casefold()]  # of which some disks make one folder
            check(
                "objectives",
                label == other,
                "names that differ in more than case",
                f"{label}, {other}",
            )
            usable = (
                label not in ("teacher", "start", "untrained")
                and label.replace("-", "_").isidentifier()
                and len(label) <= _LONGEST_LABEL
            )
            expected = f"names of letters, digits, - and _, at most {_LONGEST_LABEL}, not a model's"
            check("objectives", usable, expected, excerpt(label))
        for place, path in named_paths(self).items():
            there = self.world is not None or not in_world(path)
            check(place, there, "a section `world` that makes it", f"{path} and none")
        captured = self.rollouts.capture.captured_top_p
        fixed = {k: o for k, o in self.objectives.items() if o.tolerated_gap is None}
        wanted = {f"objectives.{k}": o.set_top_p for k, o in fixed.items()}
        wanted["evaluation"] = self.evaluation.set_top_p
        for place, set_top_p in wanted.items():
            if set_top_p is not None and set_top_p > captured:
                raise InvalidValueError(
                    f"{place}.set_top_p: expected at most rollouts.capture.captured_top_p = "
                    f"{captured}, found {set_top_p}; capture more or ask for less"
                )
        for label, objective in self.objectives.items():
            if objective.needs_tails and self.rollouts.capture.tail_samples == 0:
                raise InvalidValueError(
                    f"objectives.{label}: {objective.name} needs sampled tail tokens: expected "
                    "rollouts.capture.tail_samples above 0 (8 is a start), found 0"
                )
        whole = self.student.layers is None or self.teacher.weights.quantise is None
        field = "teacher.weights.quantise"
        check(field, whole, "null where student.layers takes its weights", "quantised ones")
        if self.teacher.backend != "transformers":
            self._check_listing()
        models = ("teacher", "start", *self.objectives)
        for name in self.evaluation.tuned_models:
            check("evaluation.tuned_models", name in models, f"among {', '.join(models)}", name)

    @property
    def judges_at_hand(self) -> bool:
        """Whether models are judged by the teacher's weights in this process."""
        return self.teacher.backend == "transformers" or self.evaluation.teacher == "local"

    def _check_listing(self) -> None:
        """What a teacher that only lists its likeliest tokens cannot give."""
        capture, backend = self.rollouts.capture, f"with teacher.backend: {self.teacher.backend}"
        field = "rollouts.capture.tail_samples"
        check(field, capture.tail_samples == 0, f"0 {backend}", capture.tail_samples)
        field = "rollouts.capture.max_set_size"
        check(field, capture.max_set_size is not None, f"a number {backend}", None)
        refuse_unknown_normaliser(self, backend)


def refuse_unknown_normaliser(recipe: Recipe, where: str) -> None:
    """Refuse objectives that read log-normalisers where there are none.

    Args:
        recipe: whose objectives are looked at.
        where: what gives none.

    Raises:
        InvalidValueError: with the cure.
    """
    for label, objective in recipe.objectives.items():
        if objective.reads_normaliser:
            raise InvalidValueError(
                f"objectives.{label}: expected the teacher's log-normalisers, which "
                f"{objective.name} reads under shift: raw; found none {where}; set shift to "
                "set-max or normalised, or let the teacher at hand read the responses (`tdistill "
                "score`, then rollouts.cache)"
            )


def named_paths(recipe: Recipe) -> dict[str, str]:
    """The paths of models, data and caches that a recipe gives, by their field."""
    paths = {"teacher.path": recipe.teacher.path, "student.path": recipe.student.path}
    paths |= {f"data.{name}": getattr(recipe.data, name) for name in _SOURCES}
    paths |= {f"rollouts.{name}": getattr(recipe.rollouts, name) for name in _GIVEN}
    return {field: path for field, path in paths.items() if path is not None}


def placed(recipe: Recipe, world: Path) -> Recipe:
    """The recipe with every ``world:NAME`` as the path in the folder of its world."""
    paths = {field: place_in_world(path, world) for field, path in named_paths(recipe).items()}
    return replace(
        recipe,
        teacher=replace(recipe.teacher, path=paths["teacher.path"]),
        student=replace(recipe.student, path=paths.get("student.path")),
        data=replace(recipe.data, **{name: paths.get(f"data.{name}") for name in _SOURCES}),
        rollouts=replace(recipe.rollouts, **{x: paths.get(f"rollouts.{x}") for x in _GIVEN}),
    )


def read_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file, with ``--section.field value`` overrides.

    Relative paths in the file are those of its folder; of the overrides, of the current one.

    Raises:
        RecipeError: for unknown keys, wrong types and impossible combinations, all at once.
    """
    alone, options = strict.split_words(overrides)
    if alone:
        expected = "expected --section.field and one value"
        raise RecipeError(f"command line: {expected}, found {alone[0]!r}")
    return read_recipes([Path(path)], options)


def read_recipes(paths: Sequence[Path], options: Sequence[strict.Option] = ()) -> Recipe:
    """One recipe from YAML files that differ in their objectives alone, with options set in it.

    Raises:
        RecipeError: as `read_recipe` and `unite` do.
    """
    # Code that an option names must be found again from any folder.
    options = [o._replace(text=strict.beside(o.text, Path())) if o.text else o for o in options]
    if len(paths) == 1:
        return _read(paths[0], options)
    late = [o for o in options if o.name.split(".")[0] in _OF_OBJECTIVES]
    early = [o for o in options if o not in late]
    united = unite({str(path): _read(path, early) for path in paths})
    return strict.structure(Recipe, recipe_dict(united), late, where="command line")


def _read(path: Path, options: Sequence[strict.Option]) -> Recipe:
    document = strict.beside(strict.load_yaml(path), path.parent)
    return strict.structure(Recipe, rooted(document, path.parent), options, where=str(path))


def rooted(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe's plain values with the relative paths of models, data and worlds made absolute.

    Args:
        document: as YAML or `recipe_dict` gives it.
        folder: that its paths are relative to.
    """
    rooted = dict(document)
    for section, names in _PATHS.items():
        values = document.get(section)
        if isinstance(values, dict):
            found = {name: values[name] for name in names if isinstance(values.get(name), str)}
            rooted[section] = values | {k: path_from(folder, path) for k, path in found.items()}
    judged = document.get("evaluation")
    if isinstance(judged, dict) and isinstance(judged.get("tasks"), list):
        rooted["evaluation"] = judged | {"tasks": [_task(folder, x) for x in judged["tasks"]]}
    return rooted


def _task(folder: Path, task: Any) -> Any:
    """A task of a file by its whole path; a name is none."""
    return path_from(folder, task) if isinstance(task, str) and task.endswith(".yaml") else task


def unite(recipes: Mapping[str, Recipe]) -> Recipe:
    """One recipe with the objectives of all; what else hangs on them is as in the first.

    Args:
        recipes: by the name of their file; they must agree in everything but their objectives.

    Raises:
        RecipeError: naming every field in which they differ, with both values and both files.
    """
    (first, base), *others = recipes.items()
    objectives = dict(base.objectives)
    problems: list[str] = []
    for name, recipe in others:
        for path, a, b in differences(_common(base), _common(recipe)):
            problems.append(f"{path}: {a} in {first}, {b} in {name}")
        for label, objective in recipe.objectives.items():
            if objectives.setdefault(label, objective) != objective:
                origin = next(n for n, r in recipes.items() if label in r.objectives)
                problems.append(
                    f"objectives.{label}: other settings in {name} than in {origin}; "
                    "give one of them another label"
                )
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise RecipeError(
            f"expected recipes that differ in their objectives alone, found{lines}\n"
            "make them equal, for instance by setting the field on the command line"
        )
    return replace(base, objectives=objectives)


def _common(recipe: Recipe) -> dict[str, Any]:
    return {k: v for k, v in recipe_dict(recipe).items() if k not in _OF_OBJECTIVES}


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted path and both values where two recipes as plain values differ."""
    if isinstance(a, dict) or isinstance(b, dict):
        a, b = (value if isinstance(value, dict) else {} for value in (a, b))
        for key in a | b:
            inside = f"{path}.{key}" if path else key
            yield from differences(a.get(key, "nothing"), b.get(key, "nothing"), inside)
    elif a != b:
        yield path, a, b


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, every default spelled out."""
    return strict.dump(recipe)
