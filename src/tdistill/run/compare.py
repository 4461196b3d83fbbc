"""Several objectives on identical evidence, order and seeds: the work behind ``tdistill compare``.

Several processes may work on one folder: each model is made by whoever holds its lock.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tdistill.checks import check, check_at_least
from tdistill.errors import InvalidValueError, RecipeError
from tdistill.files import locked
from tdistill.hashing import key_of
from tdistill.recipe import Recipe, recipe_dict
from tdistill.report.measures import duration
from tdistill.run.branch import Branch
from tdistill.run.pipeline import Run
from tdistill.run.stages import Say, Stages

_SECONDS_BETWEEN_LOOKS = 1.0
_OUTPUTS = ("compare.json", "compare.md", "compare.html")


def unite(recipes: Mapping[str, Recipe]) -> Recipe:
    """One recipe with the objectives of all.

    Args:
        recipes: by the name of their file; they must agree in everything but their objectives.

    Raises:
        RecipeError: naming every field in which they differ, with both values and both files.
    """
    (first, base), *others = recipes.items()
    plain = _flat(_common(base))
    problems: list[str] = []
    objectives = dict(base.objectives)
    origin = dict.fromkeys(objectives, first)
    for name, recipe in others:
        other = _flat(_common(recipe))
        for path in dict.fromkeys([*plain, *other]):
            a, b = plain.get(path, "nothing"), other.get(path, "nothing")
            if a != b:
                problems.append(f"{path}: {a} in {first}, {b} in {name}")
        for label, objective in recipe.objectives.items():
            if objectives.setdefault(label, objective) != objective:
                problems.append(
                    f"objectives.{label}: other settings in {name} than in {origin[label]}; "
                    "give one of them another label"
                )
            origin.setdefault(label, name)
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise RecipeError(
            f"expected recipes that differ in their objectives alone, found{lines}\n"
            "make them equal, for instance by setting the field on the command line"
        )
    # Where a model goes does not depend on `distilled` here.
    return replace(base, objectives=objectives, distilled=next(iter(objectives)))


def _common(recipe: Recipe) -> dict[str, Any]:
    plain = recipe_dict(recipe)
    return {k: v for k, v in plain.items() if k not in ("objectives", "distilled")}


def _flat(part: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in part.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def seeded(recipe: Recipe, number: int) -> Recipe:
    """The recipe with the training seeds, the start's as well, that many higher."""
    training = replace(recipe.training, seed=recipe.training.seed + number)
    start = recipe.start
    if start is not None:
        start = replace(start, training=replace(start.training, seed=start.training.seed + number))
    return replace(recipe, training=training, start=start)


class Task(NamedTuple):
    """One model to train and to judge."""

    seed: int
    label: str


class Comparison:
    """The objectives of a recipe from several training seeds, in one folder.

    Teacher, caches, examples and the untrained student are in ``shared/``; each seed has its start
    and its objectives in ``seed-K/``.

    Args:
        recipe: its objectives are compared.
        folder: where everything goes; an interrupted comparison there is continued.
        seeds: how many training seeds.
        baseline: label of the objective that the others are compared with; the first by default.
        keep_models: otherwise the weights of a model are removed once it is judged.
        say: prints a line for people.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        seeds: int = 3,
        baseline: str | None = None,
        keep_models: bool = True,
        say: Say = print,
    ) -> None:
        check_at_least(1, seeds=seeds)
        self.baseline = baseline or next(iter(recipe.objectives))
        known = f"one of the objectives ({', '.join(recipe.objectives)})"
        check("baseline", self.baseline in recipe.objectives, known, self.baseline)
        self.recipe, self.folder, self.say = recipe, folder, say
        self.keep_models = keep_models
        self.shared = Run(recipe, folder / "shared", say)
        self.seeds = [self._branch(k) for k in range(seeds)]
        self.stages = Stages(folder, say)
        self.failed: dict[Task, str] = {}

    def _branch(self, number: int) -> Branch:
        folder = self.folder / f"seed-{number}"

        def say(line: str) -> None:
            self.say(f"{folder.name} {line}")

        return Branch(seeded(self.recipe, number), folder, self.shared, say)

    @property
    def key(self) -> str:
        """Of the result."""
        return key_of([run.keys for run in self.seeds], self.shared.keys, self.baseline)

    @property
    def outputs(self) -> list[Path]:
        """The files of the result."""
        return [self.folder / name for name in _OUTPUTS]

    @property
    def complete(self) -> bool:
        """Whether all is done, the result included."""
        return self.stages.finished("compare", self.key, self.outputs) is not None

    def run(self) -> dict[str, Any]:
        """Do all that is not done; returns the content of ``compare.json``."""
        if self.complete:
            self.say(f"{self.folder}: this comparison is complete; nothing to do")
        else:
            if self._pending():
                self._share()
                self._work()
            self._write()
        return json.loads(self.outputs[0].read_text(encoding="utf-8"))

    def _share(self) -> None:
        """Make what all seeds and objectives share."""
        path = self.folder / "locks" / "shared"
        with locked(path) as held:
            if held:
                self._make_shared()
                return
        self.say("  another process makes the shared evidence; waiting for it")
        with locked(path, wait=True):
            self._make_shared()

    def _make_shared(self) -> None:
        run = self.shared
        run.check_student()
        self.say(f"  {len(run.rollouts)} teacher responses to train on")
        self.say(f"  {len(run.held_out_rollouts)} held-out teacher responses")
        if any(objective.reference_share for objective in self.recipe.objectives.values()):
            run.scored_references  # noqa: B018  (scores them, where that is not done)
        run.make_student()
        run.evaluate_one("teacher")

    def _pending(self) -> list[Task]:
        """Models that are not done, seed by seed; a start also where it is gone but needed."""
        tasks: list[Task] = []
        for k, run in enumerate(self.seeds):
            labels = [x for x in self.recipe.objectives if not run.done(x)]
            if not run.done("start") or (labels and not run.has_start):
                labels = ["start", *labels]
            tasks += [Task(k, label) for label in labels]
        return [task for task in tasks if task not in self.failed]

    def _work(self) -> None:
        waiting = False
        while tasks := self._pending():
            if self._do_one(tasks):
                waiting = False
                continue
            if not waiting:
                self.say(f"  other processes work on the last {len(tasks)} models; waiting")
                waiting = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _do_one(self, tasks: list[Task]) -> bool:
        """Do the first task that can be done and that no other process is doing."""
        for task in tasks:
            run = self.seeds[task.seed]
            if task.label != "start" and not run.has_start:
                continue
            with locked(self.folder / "locks" / f"seed-{task.seed}-{task.label}") as held:
                if not held or task not in self._pending():
                    continue
                self.say(self._announcement(task, len(tasks)))
                self._do(task)
                return True
        return False

    def _do(self, task: Task) -> None:
        run = self.seeds[task.seed]
        try:
            run.finish(task.label, keep_model=self.keep_models)
        except Exception as error:  # one objective that diverges must not end a long comparison
            if task.label == "start":
                raise
            note = self.folder / "failed" / f"seed-{task.seed}-{task.label}.txt"
            note.parent.mkdir(exist_ok=True)
            note.write_text(traceback.format_exc(), encoding="utf-8")
            self.failed[task] = f"{type(error).__name__}: {error}"
            self.say(f"  {task.label} failed ({self.failed[task]}); the others go on; see {note}")

    def _announcement(self, task: Task, left: int) -> str:
        labels = list(self.recipe.objectives)
        what = "start"
        if task.label != "start":
            number = labels.index(task.label) + 1
            what = f"objective {number} of {len(labels)} ({task.label})"
        total = len(self.seeds) * (1 + len(labels))
        text = f"seed {task.seed + 1} of {len(self.seeds)}, {what}; {total - left} of {total} done"
        known = [s for run in self.seeds for x, s in run.seconds.items() if x != "start"]
        if known:
            text += f", about {duration(left * sum(known) / len(known))} left"
        return text

    def _write(self) -> None:
        """Put what is done together in the table and the page."""
        with locked(self.folder / "locks" / "result", wait=True):
            if self.complete:  # by another process
                return
            lost = {task: why for task, why in self.failed.items() if task.label == self.baseline}
            if lost:
                task, why = next(iter(lost.items()))
                raise InvalidValueError(
                    f"baseline: expected one that trains, but {task.label} failed for seed "
                    f"{task.seed} ({why}); choose another with --baseline"
                )

            def work() -> dict[str, Any]:
                from tdistill.report.compare import write_comparison
                from tdistill.run.compare_metrics import gather_comparison

                result = gather_comparison(self)
                text = json.dumps(result, allow_nan=False)
                self.outputs[0].write_text(text, encoding="utf-8")
                write_comparison(result, self.outputs[1], self.outputs[2])
                return {}

            # Where something failed, the next call must try it again.
            key = key_of("failed", self.key) if self.failed else self.key
            self.stages.run("compare", key, self.outputs, work)
