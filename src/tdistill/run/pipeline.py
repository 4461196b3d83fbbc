"""A run: the groundwork once, then every objective from every training seed.

Every stage can be interrupted; the same command continues where it stopped and gives the same
result. Several processes may work on one folder: each model is made by whoever holds its lock. The
processes of one launch train each model together; all else the first of them does.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from tdistill.errors import ServerError, StorageError, one_line
from tdistill.files import locked, replacing_folder, write_atomically
from tdistill.models import language_model
from tdistill.models.weights import WeightsConfig
from tdistill.processes import ProcessEnded, ProcessFailed, Team, launched_team, process_rank
from tdistill.progress import duration, tell
from tdistill.recipe import Recipe, recipe_dict, rooted
from tdistill.run.checks import findings, quick_checks, refuse_wrong, thorough_checks
from tdistill.run.folders import RESOLVED_RECIPE, STUDENT, files_of_model
from tdistill.run.groundwork import Groundwork
from tdistill.run.intent import intent
from tdistill.run.outlook import outlook
from tdistill.run.replacement import replacement
from tdistill.run.stages import Say
from tdistill.run.students import START, Students
from tdistill.teacher.shares import Share

_SECONDS_BETWEEN_LOOKS = 1.0
_FATAL = (
    ServerError,
    StorageError,
    ProcessEnded,
    ProcessFailed,
)  # more than one objective is wrong

Work = Literal["train", "judge"]


class Task(NamedTuple):
    """What is to be done with one model of one training seed."""

    work: Work
    seed: int
    label: str


class Run:
    """One recipe in one folder.

    Teacher, caches and the untrained student are in the folder, and so are the models of the first
    training seed; those of the others are in ``seed-K/``.

    Args:
        recipe: what to do.
        folder: where everything goes; may hold an earlier or interrupted run of the recipe.
        say: prints a line for people.
        team: the processes of the launch; those that the environment tells of where None.

    Attributes:
        failed: why, by training seed and label, an objective could not be trained or judged.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, say: Say = tell, team: Team | None = None
    ) -> None:
        self.team = team or launched_team()
        self.recipe, self.folder = recipe, folder
        self.say: Say = say if self.team.leads else lambda line: None
        if self.team.count > 1:
            self.say(f"  {self.team.count} processes train together; all else is done by the first")
        self.groundwork = Groundwork(recipe, folder, self.say)
        self.seeds = [Students(self.groundwork, number) for number in range(recipe.seeds)]
        self.failed: dict[tuple[int, str], str] = {}
        self._begun = False

    def sample_rollouts(self) -> None:
        """Sample the teacher and capture its top-p sets, after a look at the student."""
        self.begin()
        self._alone(self._sample_rollouts)

    def sample_share(self, share: Share) -> None:
        """Sample one share of the responses of training and test, whatever others do."""
        self.begin()
        self.say(f"  {self.groundwork.sample_share(share)} teacher responses of share {share}")

    def train(self) -> None:
        """Make the start of every training seed, and train every objective from it."""
        self.begin()
        self._alone(self._make_groundwork)
        self.groundwork.release_teacher()
        self._work_off(self._tasks("train"))
        self._alone(self._publish)

    def evaluate(self) -> None:
        """Train what is not trained, and judge every model."""
        self.begin()
        if self.recipe.keep_models:
            self.train()  # all of it first: the teacher is out of memory meanwhile
            left = self._tasks("judge")
        else:
            self._alone(self._make_groundwork)
            left = self._tasks("train", "judge")
        self._alone(self.groundwork.judge_teacher)
        self._work_off(left)
        self._alone(self._publish)

    def begin(self) -> None:
        """Check all that can be checked before work is spent, then write the recipe down.

        What another recipe left in the folder is told, and kept.

        Raises:
            TdistillError: if something is wrong; nothing was written then, but for a world.
        """
        self.team.lead(self._begin)

    def _begin(self) -> None:
        told = "" if self._begun else outlook(self.recipe, self.folder)
        if not self._begun:
            self.say("; ".join(filter(None, (intent(self.recipe), told))))
        self._check(quick_checks(self.recipe, self.folder))
        self.groundwork.make_world()
        if not self.groundwork.prepared():
            self._check(thorough_checks(self.groundwork, self.folder))
        with locked(self.folder / "locks" / "recipe", wait=True):
            replaced = replacement(self.recipe, self.folder, self.groundwork.wanted_identity)
            if replaced:
                self.say(replaced.text())
                replaced.keep()
            resolved = rooted(recipe_dict(self.recipe), Path())  # read again from any folder
            text = yaml.safe_dump(resolved, sort_keys=False)
            write_atomically(self.folder / RESOLVED_RECIPE, text)
            self.groundwork.keep_clock()
            self.groundwork.keep_checked()
        if not told and not self._begun and (later := outlook(self.recipe, self.folder)):
            self.say(f"  {later}")  # now that its models are there
        self._begun = True

    def _check(self, checks: dict[str, Callable[[], str]]) -> None:
        """Refuse what is wrong, say what is doubtful."""
        found = list(findings(checks))
        refuse_wrong(found)
        for finding in found:
            if finding.level == "doubtful":
                self.say(f"  doubtful: {finding.text}")

    def _publish(self) -> None:
        """A copy of the distilled student where people look for it."""
        first, label, folder = self.seeds[0], self.recipe.distilled, self.folder / STUDENT
        if not first.trained(label):
            return

        dtype = self.groundwork.served_dtype

        def copy() -> dict[str, Any]:
            source = first.model_folder(label)
            with replacing_folder(folder) as partial:
                if dtype == "float32":
                    shutil.copytree(source, partial, dirs_exist_ok=True)
                else:
                    model = language_model.load(source, device="cpu", weights=WeightsConfig(dtype))
                    language_model.save(model, partial)
            return {"dtype": dtype}

        first.stages.run("publish", first.keys["publish"], files_of_model(folder), copy)

    def _sample_rollouts(self) -> None:
        self.say(f"  {len(self.groundwork.sample_rollouts())} teacher responses to train on")

    def _make_groundwork(self) -> None:
        self._sample_rollouts()
        if any(objective.reference_share for objective in self.recipe.objectives.values()):
            self.groundwork.score_references()
        self.groundwork.make_student()

    def _alone(self, work: Callable[[], None]) -> None:
        """Do shared work; a process that comes later waits, and finds it done."""
        self.team.lead(lambda: self._alone_in_folder(work))

    def _alone_in_folder(self, work: Callable[[], None]) -> None:
        path = self.folder / "locks" / "groundwork"
        with locked(path) as held:
            if held:
                work()
                return
        self.say("  another process makes what all models share; waiting for it")
        with locked(path, wait=True):
            work()

    def _tasks(self, *works: Work) -> list[Task]:
        """All of one work before the next; model by model if weights go once they are judged."""
        models = [(number, x) for number, seed in enumerate(self.seeds) for x in seed.labels]
        if self.recipe.keep_models:
            return [Task(work, *model) for work in works for model in models]
        return [Task(work, *model) for model in models for work in works]

    def _done(self, task: Task) -> bool:
        students = self.seeds[task.seed]
        done = students.trained if task.work == "train" else students.judged
        return done(task.label)

    def _possible(self, task: Task) -> bool:
        """Whether what a task needs is there."""
        students = self.seeds[task.seed]
        if task.work == "judge":
            return students.trained(task.label)
        return task.label == START or students.trained(START)

    def _pending(self, tasks: Sequence[Task]) -> list[Task]:
        left = [task for task in tasks if (task.seed, task.label) not in self.failed]
        return [task for task in left if not self._done(task)]

    def _work_off(self, tasks: Sequence[Task]) -> None:
        if self.team.leads:
            self._lead(tasks)
            self.team.told({"failed": [[*who, why] for who, why in self.failed.items()]})
            return
        while task := (said := self.team.told({})).get("task"):
            self._train_together(Task(*task))  # whether it failed, the first one says
        self.failed = {(seed, label): why for seed, label, why in said["failed"]}

    def _lead(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            if self._done(task):
                stage = task.label if task.work == "train" else f"evaluate-{task.label}"
                self.seeds[task.seed].say(f"[{stage}] reused")
        waiting = False
        while pending := self._pending(tasks):
            if self._do_one(pending, len(tasks)):
                waiting = False
                continue
            if not waiting:
                self.say(f"  other processes work on the last {len(pending)} steps; waiting")
                waiting = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _do_one(self, pending: Sequence[Task], total: int) -> bool:
        """Do the first task that can be done and that no other process is doing."""
        for task in pending:
            if not self._possible(task):
                continue
            with locked(self.folder / "locks" / f"seed-{task.seed}-{task.label}") as held:
                if held and not self._done(task):
                    self.say(self._announcement(task, pending, total))
                    self._do(task)
                    return True
        return False

    def _do(self, task: Task) -> None:
        students = self.seeds[task.seed]
        try:
            if task.work == "train":
                self.team.told({"task": list(task)})
                self._train_together(task)
            else:
                students.judge(task.label)
        except Exception as error:  # one objective that diverges must not end a long run
            if task.label == START or isinstance(error, _FATAL):
                raise
            self.failed[task.seed, task.label] = why = f"{type(error).__name__}: {error}"
            note = _write_note(students, task, error)
            students.say(f"  {task.label} failed ({why}); the others go on; see {note}")

    def _train_together(self, task: Task) -> None:
        """Train one model with all processes of the launch: all fail, or none, or the run ends.

        Raises:
            ProcessFailed: this process alone failed.
            Exception: what all of them failed with.
        """
        students, error = self.seeds[task.seed], None
        try:
            students.train(task.label)
        except Exception as caught:
            error = caught
        try:
            self.team.agreed(None if error is None else one_line(error))
        except (ProcessEnded, ProcessFailed) as ended:
            if error is None:
                raise
            why, note = one_line(error), _write_note(students, task, error)
            raise ProcessFailed(
                f"train {task.label}: expected all processes to succeed or all to fail, found "
                f"process {self.team.rank} of {self.team.count} to fail alone "
                f"({type(error).__name__}: {why}); see {note}; the same command goes on from here"
            ) from ended
        if error is not None and self.team.leads:
            raise error

    def _announcement(self, task: Task, pending: Sequence[Task], total: int) -> str:
        text = f"  {task.work} {task.label}, seed {task.seed + 1} of {len(self.seeds)}; "
        text += f"{total - len(pending)} of {total} done"
        left = sum(filter(None, map(self._expected_seconds, pending)))
        return f"{text}, about {duration(left)} left" if left else text

    def _expected_seconds(self, task: Task) -> float | None:
        """The mean of what the same work on other objectives took, where some was done."""
        stage = "" if task.work == "train" else "evaluate-"
        known = [
            seconds
            for students in self.seeds
            for label in self.recipe.objectives
            if (seconds := students.seconds.get(stage + label)) is not None
        ]
        return sum(known) / len(known) if known else None


def _write_note(students: Students, task: Task, error: Exception) -> Path:
    """The traceback of what failed, for people."""
    rank = process_rank()
    name = f"{task.label}-process-{rank}" if rank else task.label
    note = students.folder / "failed" / f"{name}.txt"
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, "".join(traceback.format_exception(error)))
    return note
