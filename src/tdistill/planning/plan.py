"""The plan of a recipe: models, evidence, memory and hours."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tdistill.errors import InvalidValueError
from tdistill.files import in_world
from tdistill.planning import formulas
from tdistill.planning.devices import device_of
from tdistill.planning.formulas import Strategy
from tdistill.planning.memory import (
    Job,
    Memory,
    choosing_memory,
    judging_memory,
    largest,
    sampling_memory,
    training_memory,
)
from tdistill.planning.networks import networks_of
from tdistill.planning.scale import Known, scale_of
from tdistill.planning.work import Kind, Work, work_of
from tdistill.recipe import Recipe, named_paths
from tdistill.teacher.config import RolloutConfig
from tdistill.training.objectives import SFT

_Like = tuple[Kind, bool]
_STRATEGIES: tuple[Strategy, ...] = ("DDP", "ZeRO-2", "FSDP2", "ZeRO-3")


@dataclass(frozen=True)
class Timed:
    """A stage with its time.

    Attributes:
        work: what it does.
        seconds: that it takes, or took.
        origin: ``done``, or where its rate is from: stated, measured, assumed; or ``unknown``.
    """

    work: Work
    seconds: float
    origin: str


@dataclass(frozen=True)
class Plan:
    """What a recipe asks for.

    Attributes:
        job: what it follows from.
        step_bytes: of the cache; ``cache_bytes`` of it all.
        memory: of the stages, on one device.
        strategies: memory of the training that needs most, by how processes share the student.
        strategy: the first of these that fits, or the one that needs least.
        stages: with their times.
    """

    job: Job
    step_bytes: float
    cache_bytes: float
    memory: Mapping[str, Memory]
    strategies: Mapping[Strategy, Memory]
    strategy: Strategy
    stages: Sequence[Timed]

    @property
    def seconds(self) -> float:
        """Until all is done."""
        return sum(stage.seconds for stage in self.stages if stage.origin != "done")

    def fits(self, memory: Memory) -> bool:
        """Whether a device holds it."""
        return self.job.device.holds(memory.total)

    def plain(self) -> dict[str, Any]:
        """Everything as plain values for JSON: bytes, seconds, tokens."""
        job = self.job
        models = {"teacher": job.teacher, "student": job.student}
        return {
            "parameters": {name: network.parameters for name, network in models.items()},
            "layers": {name: network.layers for name, network in models.items()},
            "devices": job.processes,
            "device": {k: None if v == math.inf else v for k, v in asdict(job.device).items()},
            "scale": asdict(job.scale),
            "cache": {"bytes": self.cache_bytes, "bytes_per_step": self.step_bytes},
            "memory": {n: m.parts() | {"total": m.total} for n, m in self.memory.items()},
            "fits": {name: self.fits(memory) for name, memory in self.memory.items()},
            "strategies": {
                name: {"total": memory.total, "fits": self.fits(memory)}
                for name, memory in self.strategies.items()
            },
            "strategy": self.strategy,
            "stages": [
                asdict(s.work) | {"seconds": s.seconds, "rate": s.origin} for s in self.stages
            ],
            "seconds": self.seconds,
        }


def job_of(recipe: Recipe, known: Known, *, device: str = "cpu", processes: int = 1) -> Job:
    """What a plan follows from.

    Args:
        recipe: its paths placed.
        known: what need not be assumed.
        device: a kind of device.
        processes: how many of them, one for each process.

    Raises:
        TdistillError: a model or a source of data is not there, or a batch cannot be divided.
    """
    refuse_unmade(recipe)
    teacher, student = networks_of(recipe)
    found = device_of(device, bf16=recipe.training.bf16)
    return Job(recipe, teacher, student, scale_of(recipe, known), found, processes)


def refuse_unmade(recipe: Recipe) -> None:
    """Refuse models that the run makes itself, of which nothing is known before.

    Raises:
        InvalidValueError: with what to name instead.
    """
    for field in ("teacher.path", "student.path"):
        path = named_paths(recipe).get(field)
        made = recipe.world is not None and path is not None and not Path(path).exists()
        if in_world(path) or made:
            raise InvalidValueError(
                f"{field}: expected a model whose configuration can be read, found {path}, which "
                f"the run makes first; name a folder with a config.json like it, as in --{field} "
                "FOLDER, or plan again once the run has made it, with its --out"
            )


def make_plan(job: Job, known: Known) -> Plan:
    """The plan of a job.

    Args:
        job: what is done, and where.
        known: rates and times that need not be assumed.
    """
    strategies = _strategies(job)
    chosen = _chosen(strategies, job)
    step_bytes, whole = _cache(job)
    return Plan(
        job,
        step_bytes,
        whole,
        _memory(job, chosen),
        strategies,
        chosen,
        timed(work_of(job), known, measured=job.device.measured),
    )


def _chosen(strategies: Mapping[Strategy, Memory], job: Job) -> Strategy:
    """The first that fits, or what needs least."""
    for way, memory in strategies.items():
        if job.device.holds(memory.total):
            return way
    return min(strategies.items(), key=lambda pair: pair[1].total)[0]


def _cache(job: Job) -> tuple[float, float]:
    """Bytes of a step, and of the cache of training."""
    scale, config = job.scale, job.recipe.rollouts
    steps = scale.prompts * config.n * scale.response_tokens
    if scale.step_bytes is not None:
        return scale.step_bytes, steps * scale.step_bytes
    whole = evidence_bytes(
        config,
        job.teacher.vocabulary,
        prompts=scale.prompts,
        prompt_tokens=scale.prompt_tokens,
        response_tokens=scale.response_tokens,
        set_size=scale.set_size,
    )
    return whole / max(steps, 1), whole


def evidence_bytes(
    config: RolloutConfig,
    vocabulary: int,
    *,
    prompts: int,
    prompt_tokens: float,
    response_tokens: float,
    set_size: float,
) -> float:
    """Bytes of the cache that rollouts fill.

    Args:
        config: of the rollouts.
        vocabulary: of the teacher.
        prompts: that are responded to.
        prompt_tokens: of one, in the mean; likewise ``response_tokens``.
        set_size: members of a set, in the mean.
    """
    rows = prompts * config.n
    each = formulas.step_bytes(set_size, vocabulary, tail_tokens=config.capture.tail_samples)
    return formulas.cache_bytes(
        rows,
        rows * response_tokens,
        each,
        prompt_bytes=prompt_tokens * formulas.token_bytes(vocabulary) / config.n,
        shards=math.ceil(rows / (config.batch_size * config.batches_per_shard)),
    )


def _memory(job: Job, strategy: Strategy) -> dict[str, Memory]:
    """By stage, in the order of a run."""
    recipe, found = job.recipe, dict[str, Memory]()
    if not recipe.rollouts.given:
        found["rollouts"] = sampling_memory(job)
    found["student"] = choosing_memory(job)
    if recipe.start is not None:
        found["start"] = training_memory(job, recipe.start.training, SFT(), strategy)
    for label, objective in recipe.objectives.items():
        found[label] = training_memory(job, recipe.training, objective, strategy)
    return found | {"judging": judging_memory(job)}


def _strategies(job: Job) -> dict[Strategy, Memory]:
    """Memory of the training that needs most, for each way to share the student."""
    recipe = job.recipe
    phases = [(recipe.training, objective) for objective in recipe.objectives.values()]
    if recipe.start is not None:
        phases.append((recipe.start.training, SFT()))
    ways: tuple[Strategy, ...] = _STRATEGIES if job.processes > 1 else ("one",)
    return {way: largest([training_memory(job, *phase, way) for phase in phases]) for way in ways}


def timed(work: Sequence[Work], known: Known, *, measured: bool = False) -> list[Timed]:
    """Stages with their times: those that are done, and the others at the best known rate.

    A rate that is stated or probed counts first; then what finished stages of the kind took, beside
    what was assumed of them (where nothing was, beside their tokens); then the assumption.

    Args:
        work: all stages.
        known: rates, and seconds by ``stage`` or, of further seeds, ``seed-K/stage``.
        measured: whether the seconds of ``work`` are of a device whose speed was measured.
    """
    took, assumed = defaultdict[_Like, float](float), defaultdict[_Like, float](float)
    for one in work:
        if (seconds := known.seconds.get(place_of(one))) is not None:
            took[_like(one)] += seconds
            assumed[_like(one)] += one.seconds or one.tokens
    origin = "measured" if measured else "assumed"
    return [_timed(one, known, took[_like(one)], assumed[_like(one)], origin) for one in work]


def _like(one: Work) -> _Like:
    """What a stage's time says something of: its kind, here or on a server."""
    return one.kind, one.seconds > 0


def _timed(one: Work, known: Known, took: float, assumed: float, origin: str) -> Timed:
    done, rate = known.seconds.get(place_of(one)), known.rates.get(one.kind)
    if done is not None:
        return Timed(one, done, "done")
    if rate is not None:
        return Timed(one, one.tokens / rate, "stated")
    if took > 0 and assumed > 0:
        return Timed(one, (one.seconds or one.tokens) * took / assumed, "measured")
    return Timed(one, one.seconds, origin if one.seconds else "unknown")


def place_of(work: Work) -> str:
    """How the record of a stage is found in the folder of a run."""
    return f"seed-{work.seed}/{work.stage}" if work.seed else work.stage
