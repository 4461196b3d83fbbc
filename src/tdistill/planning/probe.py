"""Rates of the machine at hand, measured for up to a minute on a few random layers."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from tdistill.checks import check
from tdistill.models.head_form import body_of
from tdistill.planning.devices import device_here
from tdistill.planning.formulas import passes
from tdistill.planning.memory import Job, pass_shape
from tdistill.planning.networks import Network, built
from tdistill.planning.work import token_flops
from tdistill.training.layer_pattern import shortened

_LAYERS = 2
_TOKENS = 64  # of the probe's vocabulary: tables would take memory and no time
_SECONDS = 15.0  # of each of the measurements
_MOST_TOKENS = 2048  # of a pass of training
_REPEATED = 3  # times at least


def probed(job: Job, *, seconds: float = _SECONDS) -> Job:
    """The job with the speed of this machine in place of what is assumed of its device.

    Training's speed is that of forward and backward passes through two layers of the student. A
    layer's own cost at each decoded token is what two layers of the teacher take beyond their
    operations at that speed.

    Args:
        job: on a device of this machine.
        seconds: for each of the two.

    Raises:
        InvalidValueError: the device is not of this machine.
    """
    here = device_here()
    wanted = f"--device {here}, this machine's, with --probe"
    check("--device", job.device.name == here, wanted, job.device.name)
    speed = training_speed(job, seconds)
    device = replace(job.device, speed=speed, bandwidth=math.inf, measured=True)
    layer = decoding_seconds(job, seconds)
    context = job.scale.prompt_tokens + job.scale.response_tokens / 2
    flops = token_flops(job.teacher, context, head=False) / job.teacher.layers
    computed = job.recipe.rollouts.batch_size * flops / speed
    return replace(job, device=replace(device, overhead=max(0.0, layer - computed)))


def training_speed(job: Job, seconds: float) -> float:
    """Operations a second of forward and backward passes."""
    rows, length = pass_shape(job.recipe.training, job)
    rows = max(1, min(rows, _MOST_TOKENS // length))
    model = _few_layers(job.student, torch.float32).train()
    ids = torch.randint(_TOKENS, (rows, length), device=model.device)
    half = job.recipe.training.bf16

    def update() -> None:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            states = body_of(model)(input_ids=ids, use_cache=False).last_hidden_state
        states.float().sum().backward()

    flops = token_flops(job.student, length / 2, head=False) / job.student.layers * _LAYERS
    return passes(checkpointing=False) * rows * length * flops / timed_work(update, seconds)


@torch.no_grad()
def decoding_seconds(job: Job, seconds: float) -> float:
    """Seconds that a layer of the teacher takes for one token of every row of a batch."""
    dtype = torch.float32 if job.teacher_itemsize == 4.0 else torch.bfloat16
    model = _few_layers(job.teacher, dtype).eval()
    rows = job.recipe.rollouts.batch_size
    prompts = torch.randint(_TOKENS, (rows, round(job.scale.prompt_tokens)), device=model.device)
    held: Any = {"made": model(input_ids=prompts, use_cache=True)}

    def step() -> None:
        made = held["made"]
        cache = {n: getattr(made, n) for n in ("cache",) if getattr(made, n, None) is not None}
        cache = cache or {"past_key_values": made.past_key_values}
        held["made"] = model(input_ids=prompts[:, -1:], use_cache=True, **cache)

    return timed_work(step, seconds) / _LAYERS


def timed_work(work: Callable[[], None], seconds: float) -> float:
    """Median time of some work, the first go left out, repeated for so long."""
    took, until = list[float](), time.perf_counter() + seconds
    while len(took) <= _REPEATED or time.perf_counter() < until:
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - begun)
        if len(took) > 1 and sum(took) > seconds:
            break
    return median(took[1:])


def _few_layers(network: Network, dtype: torch.dtype) -> Any:
    """Layers of a network with random weights, on this machine's device, and small tables."""
    config = copy.deepcopy(next(shortened(network.config, range(min(_LAYERS, network.layers)))))
    text = config.get_text_config()
    text.vocab_size = _TOKENS
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    return built(config, "cuda" if torch.cuda.is_available() else "cpu", dtype)
