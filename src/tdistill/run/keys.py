"""What each stage of a run depends on, as a key: from the recipe and the files it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tdistill import strict
from tdistill.evaluation.verifier import load_verifier
from tdistill.files import fingerprint, in_world
from tdistill.hashing import key_of
from tdistill.recipe import Recipe, WorldConfig, recipe_dict
from tdistill.report.result import FORMAT


def seeded(recipe: Recipe, number: int) -> Recipe:
    """The recipe with the training seeds, the start's as well, that many higher."""
    training = replace(recipe.training, seed=recipe.training.seed + number)
    start = recipe.start
    if start is not None:
        start = replace(start, training=replace(start.training, seed=start.training.seed + number))
    return replace(recipe, training=training, start=start)


def stage_keys(recipe: Recipe) -> dict[str, str]:
    """The key of every stage of one training seed, by the name of the stage."""
    plain = recipe_dict(recipe)
    keys = _shared_keys(recipe)
    text = _content(recipe.data.lm_text, keys)
    keys["start"] = key_of(keys["student"], keys["rollouts"], plain["start"], text)
    for label in recipe.objectives:
        place = label == recipe.distilled  # in student/ or in models/
        own = plain["objectives"][label], plain["training"], text, place
        code = strict.source_file_of(type(recipe.objectives[label]))
        if code is not None:  # a class of the user's own
            own = *own, fingerprint(str(code))
        keys[label] = key_of(keys["start"], keys["rollouts"], own)
    verifier = _source_of_verifier(recipe)
    for label in ("teacher", "start", *recipe.objectives):
        evaluation = key_of(keys[label], keys["held-out"], plain["evaluation"], verifier)
        keys[f"evaluate-{label}"] = evaluation
    return keys


def _source_of_verifier(recipe: Recipe) -> str | None:
    """The fingerprint of the file of a user's own verifier."""
    named = recipe.evaluation.verify
    file = None if named is None else load_verifier(named).source_file
    return None if file is None else fingerprint(str(file))


def _shared_keys(recipe: Recipe) -> dict[str, str]:
    """Those of the stages that no training seed is in."""
    plain, data = recipe_dict(recipe), recipe.data
    keys = {} if recipe.world is None else {"world": _world_key(recipe.world)}
    keys["teacher"] = key_of(plain["teacher"], _content(recipe.teacher.path, keys))
    read = {k: v for k, v in plain["data"].items() if not k.startswith("lm_")}
    files = {s: _content(getattr(data, s), keys) for s in ("train", "valid", "test")}
    keys["rollouts"] = key_of(keys["teacher"], read, files, plain["rollouts"])
    keys["references"] = key_of(keys["rollouts"], "references")
    keys["held-out"] = key_of(keys["rollouts"], recipe.evaluation.rollouts_per_prompt)
    student = _content(recipe.student.path, keys)
    origin = keys["rollouts"] if recipe.student.measured else keys["teacher"]
    keys["student"] = key_of(origin, plain["student"], student)
    return keys


def _world_key(world: WorldConfig) -> str:
    maker = type(world.maker())
    code = [fingerprint(str(file)) for file in strict.source_files_of(maker)]
    return key_of(maker.__qualname__, world.settings, code)


def _content(path: str | None, keys: Mapping[str, str]) -> str:
    """What is at a path; in the world, which may not be made yet, all that makes it."""
    return keys["world"] if in_world(path) else fingerprint(path)


def result_key(recipe: Recipe) -> str:
    """The key of the result: of all stages of all training seeds."""
    seeds = [stage_keys(seeded(recipe, number)) for number in range(recipe.seeds)]
    return key_of(FORMAT, seeds, recipe.distilled, recipe.baseline)
