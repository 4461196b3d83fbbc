"""What a run will take, from its recipe and from what its folder holds already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tdistill.errors import TdistillError
from tdistill.models.model_files import CONFIG
from tdistill.planning.devices import device_here
from tdistill.planning.memory import Job
from tdistill.planning.plan import job_of, timed
from tdistill.planning.scale import Known, of_cache
from tdistill.planning.work import work_of
from tdistill.processes import process_count
from tdistill.progress import duration
from tdistill.recipe import Recipe, placed
from tdistill.run.folders import seed_folder, world_folder
from tdistill.run.keys import seeded, stage_keys
from tdistill.run.stages import Stages, read_record


def job_in(recipe: Recipe, folder: Path, known: Known, *, device: str, processes: int = 1) -> Job:
    """What a plan of a recipe in a folder follows from; a teacher that was converted is read there.

    Raises:
        TdistillError: as :func:`tdistill.planning.plan.job_of` does.
    """
    made = placed(recipe, world_folder(recipe, folder))
    if made.teacher.gguf_file is not None and _converted(folder):
        teacher = replace(made.teacher, path=str(folder / "teacher"), gguf_file=None)
        made = replace(made, teacher=teacher)
    return job_of(made, known, device=device, processes=processes)


def _converted(folder: Path) -> bool:
    return (folder / "teacher" / CONFIG).is_file()


def known_of(recipe: Recipe, folder: Path) -> Known:
    """What the cache of a run, and its finished stages, say.

    A folder in which nothing was done says nothing.
    """
    made = placed(recipe, world_folder(recipe, folder)).rollouts
    given = None if made.cache is None else Path(made.cache)
    places = [folder / "cache", *([] if given is None else [given, given / "cache"])]
    known = Known()
    for place in places:
        known = known.over(of_cache(place, recipe.rollouts.capture))
    rows = _rows_made(folder)
    if rows is not None:
        prompts = rows / recipe.rollouts.n
        known = Known(prompts=prompts, origins={"prompts": "measured"}).over(known)
    return Known(seconds=_seconds(recipe, folder)).over(known)


def _rows_made(folder: Path) -> int | None:
    """Responses to train on that a run has sampled."""
    record = read_record(folder / "stages" / "rollouts.json")
    return None if record is None else record["rows"]


def _seconds(recipe: Recipe, folder: Path) -> dict[str, float]:
    """What finished stages took, by their place in the folder."""
    if not (folder / "stages").is_dir():
        return {}
    found: dict[str, float] = {}
    for number in range(recipe.seeds):
        own, place = seeded(recipe, number), seed_folder(folder, number)
        records = Stages(place, lambda line: None).records(stage_keys(own))
        start = f"seed-{number}/" if number else ""
        found |= {f"{start}{name}": record["seconds"] for name, record in records.items()}
    return found


def outlook(recipe: Recipe, folder: Path) -> str:
    """How long a run will take, for its first line; without a probe, so with a word of its origin.

    Returns:
        A part of a sentence; "" where it cannot be told, as with models that the run makes itself,
        or not at once: the configuration in a GGUF file takes seconds to read.
    """
    if recipe.teacher.gguf_file is not None and not _converted(folder):
        return ""
    try:
        known, device = known_of(recipe, folder), device_here()
        job = job_in(recipe, folder, known, device=device, processes=process_count())
        stages = timed(work_of(job), known)
    except TdistillError:  # the checks that follow say what is wrong
        return ""
    left = [stage for stage in stages if stage.origin != "done"]
    if not left:
        return ""
    seconds = sum(stage.seconds for stage in left)
    measured = sum(stage.seconds for stage in left if stage.origin == "measured")
    known_rates = "of its finished stages" if measured > seconds / 2 else f"assumed of a {device}"
    return f"about {duration(seconds)} at the rates {known_rates}"
