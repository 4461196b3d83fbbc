"""A whole run, from a recipe to ``metrics.json`` and ``report.html``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdistill.errors import InvalidValueError, TdistillError
from tdistill.files import locked
from tdistill.hashing import key_of
from tdistill.progress import tell
from tdistill.recipe import Recipe
from tdistill.report import write_report
from tdistill.report.result import Result, read_result, write_result
from tdistill.run.folders import STUDENT
from tdistill.run.gathering import baseline_of, gather_result
from tdistill.run.keys import result_key
from tdistill.run.origin import CARD, origin_of, write_card
from tdistill.run.pipeline import Run
from tdistill.run.stages import Say, Stages
from tdistill.run.trackers import attach


def run_recipe(recipe: Recipe, folder: Path | str, say: Say = tell) -> Result:
    """Do all of a recipe and write ``metrics.json``, ``report.html`` and the student's card.

    Objectives that fail are left out of the result, which names them; the next call tries them
    again. Several processes may be started on one folder: they share the work.

    Args:
        recipe: what to do.
        folder: where everything goes; an interrupted run there is continued.
        say: prints a line for people.

    Returns:
        What is in ``metrics.json``.

    Raises:
        InvalidValueError: if the distilled objective or the baseline failed, once the others are
            done.
    """
    folder = Path(folder)
    run, key = Run(recipe, folder, say), result_key(recipe)
    with run.team:
        if run.team.told(run.team.leads and _finished(run, key)):
            run.say(f"{folder}: this run is complete; nothing to do, its results follow")
        else:
            run.evaluate()
            run.team.lead(lambda: _write_result_once(run, key))
        return read_result(folder / "metrics.json")


def _write_result_once(run: Run, key: str) -> None:
    with locked(run.folder / "locks" / "result", wait=True):
        if not _finished(run, key):  # by another process
            numbers = _outputs(run)[0]
            if not _is_whole(numbers):
                numbers.unlink(missing_ok=True)
            _write_result(run, key)


def _outputs(run: Run) -> list[Path]:
    return [run.folder / "metrics.json", run.folder / "report.html", run.folder / STUDENT / CARD]


def _finished(run: Run, key: str) -> bool:
    outputs = _outputs(run)
    done = Stages(run.folder, run.say).finished("report", key, outputs) is not None
    return done and _is_whole(outputs[0]) and not any(seed.damaged() for seed in run.seeds)


def _is_whole(numbers: Path) -> bool:
    """Whether a result can be read; one that was damaged is made again from the records."""
    try:
        read_result(numbers)
    except (TdistillError, OSError):
        return False
    return True


def _write_result(run: Run, key: str) -> None:
    _refuse_without_the_main_ones(run)
    numbers, page, _ = _outputs(run)

    def work() -> dict[str, Any]:
        result = gather_result(run)
        write_result(result, numbers)
        write_report(result, page)
        ground = run.groundwork
        chat = bool(ground.load_tokenizer().chat_template)
        origin = origin_of(ground.placed, ground.teacher_folder, chat=chat)
        write_card(result, origin, run.folder / STUDENT)
        attach(run.recipe.training.report_to, result, run.folder, run.say)
        return {}

    # Where something failed, the next call must try it again.
    key = key_of("failed", key) if run.failed else key
    Stages(run.folder, run.say).run("report", key, _outputs(run), work)


def _refuse_without_the_main_ones(run: Run) -> None:
    needed = {"distilled": run.recipe.distilled, "baseline": baseline_of(run.recipe)}
    for (seed, label), why in run.failed.items():
        for field, wanted in needed.items():
            if label == wanted:
                note = run.seeds[seed].folder / "failed" / f"{label}.txt"
                raise InvalidValueError(
                    f"{field}: expected an objective that trains, but {label} failed for seed "
                    f"{seed} ({why}; see {note}); mend it, or choose another with --{field}"
                )
