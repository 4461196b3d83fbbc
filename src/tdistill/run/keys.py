"""What each stage of a run depends on, as a key: from the recipe and the files it names.

A key holds what the files contain, not where they are: who moves or renames a teacher, a data set
or the recipe's folder finds all work again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tdistill import strict
from tdistill.errors import ModelError
from tdistill.evaluation.verifier import load_verifier
from tdistill.files import expanded, fingerprint, in_world, resolve_path
from tdistill.hashing import key_of
from tdistill.models.adapters import adapter_bases
from tdistill.models.model_files import model_content
from tdistill.recipe import Recipe, WorldConfig, named_paths, recipe_dict
from tdistill.report.result import FORMAT
from tdistill.teacher.cache.manifest import MANIFEST

_TOLD = ("report_to", "save_steps")
_LIMITS = ("max_boundary_failures",)  # what refuses a run, and changes nothing in one that goes on


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
    start = plain["start"] and plain["start"] | {"training": _training(plain["start"]["training"])}
    keys["start"] = key_of(keys["student"], keys["rollouts"], start, text)
    for label, objective in recipe.objectives.items():
        own = plain["objectives"][label], _training(plain["training"]), text
        code = strict.source_file_of(type(objective))
        if code is not None:  # a class of the user's own
            named = plain["objectives"][label] | {"objective": type(objective).__qualname__}
            own = named, *own[1:], fingerprint(str(code))
        keys[label] = key_of(keys["start"], keys["rollouts"], own)
    served = plain["student"]["served_dtype"]
    keys["publish"] = key_of(recipe.distilled, keys[recipe.distilled], served)
    judged_by = plain["evaluation"] | {"verify": _verifier(recipe)}
    for label in ("teacher", "start", *recipe.objectives):
        evaluation = key_of(keys[label], keys["held-out"], judged_by)
        keys[f"evaluate-{label}"] = evaluation
    return keys


def _training(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What a training depends on: not on who is told of it, nor on when it is saved."""
    return {name: value for name, value in plain.items() if name not in _TOLD}


def _verifier(recipe: Recipe) -> Any:
    """The verifier: its name, or the name and the content of the file of a user's own."""
    named = recipe.evaluation.verify
    file = None if named is None else load_verifier(named).source_file
    return named if file is None else (str(named).rpartition(":")[2], fingerprint(str(file)))


def _shared_keys(recipe: Recipe) -> dict[str, str]:
    """Those of the stages that no training seed is in."""
    plain, data = recipe_dict(recipe), recipe.data
    keys = {} if recipe.world is None else {"world": _world_key(recipe.world)}
    places = named_paths(recipe)
    keys["teacher"] = key_of(_asked(recipe, plain, places), _model(recipe.teacher.path, keys))
    judged_on = {s: _content(getattr(data, s), keys) for s in ("valid", "test")}
    judged_on |= {name: plain["data"][name] for name in ("limit_valid", "limit_test")}
    read = _without("data", plain, places)
    read = {k: v for k, v in read.items() if k not in judged_on and k not in _LIMITS}
    read |= {"train": _content(data.train, keys), "auto": data.split_off}
    given = [_content(recipe.rollouts.responses, keys), _cached(recipe.rollouts.cache, keys)]
    how = _without("rollouts", plain, places)
    # Of given responses those to test and validation prompts are not trained on.
    divided = judged_on if recipe.rollouts.given else None
    keys["rollouts"] = key_of(keys["teacher"], read, how, given, divided)
    keys["references"] = key_of(keys["rollouts"], "references")
    each = recipe.evaluation.rollouts_per_prompt
    keys["held-out"] = key_of(keys["rollouts"], each, judged_on)
    student = _model(recipe.student.path, keys)
    origin = keys["rollouts"] if recipe.student.measured else keys["teacher"]
    made = _without("student", plain, places)
    made.pop("served_dtype")  # of a copy at the end
    keys["student"] = key_of(origin, made, student)
    return keys


def _without(section: str, plain: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """A section of the recipe but for its paths, whose content counts."""
    return {k: v for k, v in plain[section].items() if f"{section}.{k}" not in places}


def _asked(recipe: Recipe, plain: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """The teacher's section but for where it is and how it is reached, which changes nothing."""
    section = _without("teacher", plain, places)
    server, _ = section.pop("server"), section.pop("vllm")
    weights = {k: v for k, v in section.pop("weights").items() if k != "device_map"}
    named = {"model": server["model"]} if recipe.teacher.backend == "server" else {}
    return section | named | {"weights": weights}


def _world_key(world: WorldConfig) -> str:
    maker = type(world.maker())
    code = [fingerprint(str(file)) for file in strict.source_files_of(maker)]
    return key_of(maker.__qualname__, world.settings, code)


def _model(path: str | None, keys: Mapping[str, str]) -> str:
    """What is at the path of a model; of an adapter, its bases as well."""
    if path is None or in_world(path):
        return _content(path, keys)
    bases: list[str] = []
    with suppress(ModelError):  # what cannot be used is refused before any work
        bases = adapter_bases(resolve_path(path))
    contents = [model_content(place) for place in (path, *bases)]
    return key_of(contents) if bases else contents[0]


def _cached(path: str | None, keys: Mapping[str, str]) -> Any:
    """What the caches at a path are: their manifests have the checksums of all they hold."""
    if path is None or in_world(path):
        return _content(path, keys)
    place = expanded(path)
    folders = (place, place / "cache", place / "cache-test")
    return [fingerprint(str(f / MANIFEST)) for f in folders if (f / MANIFEST).exists()]


def _content(path: str | None, keys: Mapping[str, str]) -> str:
    """What is at a path; in the world, which may not be made yet, all that makes it."""
    return keys["world"] if in_world(path) else fingerprint(path)


def checked_key(recipe: Recipe) -> str:
    """Of all that is looked at in data and models before a run begins."""
    keys, plain = _shared_keys(recipe), recipe_dict(recipe)
    read = {name: plain["training"][name] for name in ("head", "replay", "text_chunk_tokens")}
    text = _content(recipe.data.lm_text, keys)
    judged = plain["evaluation"], _verifier(recipe)
    objectives = recipe.objectives.values()
    rows = sorted({(o.rows, o.uses_student_rows, o.reference_share > 0) for o in objectives})
    return key_of(keys["student"], keys["held-out"], plain["start"], read, text, judged, rows)


def result_key(recipe: Recipe) -> str:
    """The key of the result: of all stages of all training seeds."""
    seeds = [stage_keys(seeded(recipe, number)) for number in range(recipe.seeds)]
    return key_of(FORMAT, seeds, recipe.distilled, recipe.baseline)
