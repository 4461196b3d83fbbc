"""The work of each stage: tokens, and seconds at the rate of a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tdistill.planning.formulas import (
    FLOAT32,
    decoding_step_seconds,
    forward_flops,
    passes,
)
from tdistill.planning.memory import Job, reads_vocabulary
from tdistill.planning.networks import Network
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import SFT, Objective

Kind = Literal["sampling", "reading", "choosing", "training", "judging"]

_LOOKED_AT = 10  # times that capture goes over the logits of a step
_TRIED = 6  # layers tried for each that is taken out


@dataclass(frozen=True)
class Work:
    """What a stage does.

    Attributes:
        stage: as its record is named.
        kind: stages of one kind go at one rate.
        tokens: that are sampled, read, trained on or judged.
        seconds: at the assumed rate of the device; 0 where a server sets the pace.
        processes: that do it.
        seed: of the training.
    """

    stage: str
    kind: Kind
    tokens: float
    seconds: float
    processes: int = 1
    seed: int = 0


def work_of(job: Job) -> list[Work]:
    """The stages of a run in their order, without those that take no time to speak of."""
    recipe = job.recipe
    done = [*_evidence(job), _choosing(job)]
    judged = [_judging(job, "teacher")]
    for seed in range(recipe.seeds):
        if recipe.start is not None:
            done.append(_training(job, "start", SFT(), recipe.start.training, seed))
        for label, objective in recipe.objectives.items():
            done.append(_training(job, label, objective, recipe.training, seed))
        judged += [_judging(job, label, seed) for label in ("start", *recipe.objectives)]
    return [work for work in (*done, *judged) if work.tokens > 0]


def _evidence(job: Job) -> list[Work]:
    """The teacher's responses to training and test prompts, sampled or read."""
    recipe, scale = job.recipe, job.scale
    config, test = recipe.rollouts, scale.test_prompts * recipe.evaluation.rollouts_per_prompt
    if config.cache is not None:
        return []
    found = []
    for stage, rows in (("rollouts", scale.prompts * config.n), ("held-out", test)):
        if config.responses is not None:
            tokens = rows * scale.row
            found.append(Work(stage, "reading", tokens, _reading(job.teacher, tokens, job)))
            continue
        tokens, seconds = rows * scale.response_tokens, sampling_seconds(job, rows, config.n)
        found.append(Work(stage, "sampling", tokens, seconds))
    return found


def sampling_seconds(job: Job, rows: int, each: int) -> float:
    """The teacher's responses, a token of every row of a batch at a time; prompts are read once."""
    if job.served:
        return 0.0
    size, teacher = job.teacher_itemsize, job.teacher
    batch = min(job.recipe.rollouts.batch_size, max(rows, 1))
    prompts = _reading(teacher, rows / each * job.scale.prompt_tokens, job)
    logits = _LOOKED_AT * teacher.vocabulary * FLOAT32
    step = _step_seconds(teacher, batch, job, itemsize=size, beside=logits)
    return prompts + rows * job.scale.response_tokens / batch * step


def _step_seconds(
    network: Network, batch: int, job: Job, *, itemsize: float, beside: float
) -> float:
    """One token of each row of a batch; ``beside`` is what a row moves beside keys and values."""
    context = job.scale.prompt_tokens + job.scale.response_tokens / 2
    row = context * network.state * itemsize + beside
    return decoding_step_seconds(
        batch * token_flops(network, context),
        network.parameters * itemsize + batch * row,
        network.layers,
        speed=job.device.speed,
        bandwidth=job.device.bandwidth,
        overhead=job.device.overhead,
    )


def token_flops(network: Network, context: float, *, head: bool = True) -> float:
    """Operations of a token forward, with or without the output layer."""
    multiplied = network.in_layers + head * network.head
    return forward_flops(multiplied, network.layers, network.hidden, context)


def _reading(network: Network, tokens: float, job: Job) -> float:
    flops = token_flops(network, job.scale.row / 2)
    return tokens * flops / job.device.speed


def _choosing(job: Job) -> Work:
    """Greedily, a few shorter models are read for each layer that is taken out."""
    student = job.recipe.student
    if not student.measured:
        return Work("student", "choosing", 0.0, 0.0)
    removed = job.teacher.layers - job.student.layers
    tried = job.teacher.layers + _TRIED * (removed - 1) if student.choose == "greedy" else 1
    tokens = float(tried * student.measured_tokens)
    seconds = _reading(job.teacher, tokens, job) / (2 if tried > 1 else 1)
    return Work("student", "choosing", tokens, seconds)


def _training(job: Job, stage: str, objective: Objective, config: TrainConfig, seed: int) -> Work:
    tokens = config.steps * config.batch_size * job.scale.row
    seconds = tokens / trained_per_second(job, objective, config)
    return Work(stage, "training", tokens, seconds, job.processes, seed)


def trained_per_second(job: Job, objective: Objective, config: TrainConfig) -> float:
    """Tokens, prompts included, that all processes train on in a second."""
    responses = job.scale.response_tokens / job.scale.row  # where the output layer is read
    student, context = job.student, job.scale.row / 2
    body = token_flops(student, context, head=False)
    head = 2.0 * student.head * responses * reads_vocabulary(objective)
    cost = passes(checkpointing=config.gradient_checkpointing) * (body + head)
    if objective.needs_live_teacher or objective.uses_student_rows:
        cost += token_flops(job.teacher, context)
    if objective.target_network is not None:
        cost += body
    own = objective.student_share * student.parameters * 2.0 * responses
    return job.processes * job.device.speed / (cost + own)


def _judging(job: Job, label: str, seed: int = 0) -> Work:
    """Responses in every decoding, read by the model and by the teacher."""
    config, scale = job.recipe.evaluation, job.scale
    rounds = sum(1 if d.greedy else config.seeds for d in config.decodings.values())
    if config.sweep is not None:
        rounds += len(config.sweep.temperatures) * config.sweep.seeds
    read = rounds * scale.test_prompts
    tuned = len(config.tuned_temperatures) * config.seeds * scale.valid_prompts
    sampled = read + tuned * (label in config.tuned_models)
    model = job.teacher if label == "teacher" else job.student
    batch = min(config.batch_size, max(1, sampled))
    logits = _LOOKED_AT * model.vocabulary * FLOAT32
    step = _step_seconds(model, batch, job, itemsize=FLOAT32, beside=logits)
    tokens = sampled * scale.judged_tokens
    both = read * (scale.prompt_tokens + scale.judged_tokens)
    away = job.served and not job.recipe.judges_at_hand
    readers = [model for model in (model, job.teacher) if not (away and model is job.teacher)]
    asked = away and label == "teacher"
    seconds = tokens / batch * step * (not asked) + sum(_reading(r, both, job) for r in readers)
    return Work(f"evaluate-{label}", "judging", tokens, seconds, seed=seed)
