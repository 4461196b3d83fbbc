"""A plan for people: tables of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tdistill.files import last_name
from tdistill.planning.memory import Memory
from tdistill.planning.plan import Plan, Timed
from tdistill.progress import duration
from tdistill.report.measures import count

WIDTH = 80
_PARTS = {
    "weights": "weight",
    "gradients": "grads",
    "moments": "optim",
    "activations": "activ",
    "keys": "k-v",
    "logits": "logit",
    "sets": "sets",
}
_KINDS = {
    "sampling": "sampled",
    "reading": "read",
    "choosing": "read",
    "training": "trained on",
    "judging": "sampled",
}
_CURES = {
    "prompts": "--prompts",
    "prompt_tokens": "--prompt-tokens",
    "response_tokens": "--response-tokens",
    "set_size": "--set-size",
}


def plan_text(plan: Plan) -> str:
    """All of a plan, in lines of at most 80 columns."""
    parts = (_head(plan), _evidence(plan), _memory(plan), _strategies(plan), _hours(plan))
    return "\n\n".join("\n".join(lines) for lines in (*map(list, parts), list(_notes(plan))))


def _head(plan: Plan) -> Iterator[str]:
    job, recipe = plan.job, plan.job.recipe
    into = recipe.student.path or f"{job.student.layers} of its {job.teacher.layers} layers"
    names = f"{last_name(recipe.teacher.path)} ({count(job.teacher.parameters)} parameters) into "
    yield from _wrapped(f"{names}{last_name(into)} ({count(job.student.parameters)})")
    devices = f"{job.processes} x {job.device.name}" if job.processes > 1 else job.device.name
    yield f"on {devices} of {job.device.memory / 1e9:.0f} GB"


def _evidence(plan: Plan) -> Iterator[str]:
    scale, config = plan.job.scale, plan.job.recipe.rollouts
    rows = scale.prompts * config.n
    yield "evidence"
    yield f"  prompts     {scale.prompts:>15,}   {scale.origins['prompts']}"
    yield f"  responses   {rows:>15,}   {config.n} a prompt"
    tokens = f"{scale.response_tokens:,.0f} a response, {scale.origins['response_tokens']}"
    yield f"  steps       {rows * scale.response_tokens:>15,.0f}   {tokens}"
    members = f"{scale.set_size:.1f} members a set, {scale.origins['set_size']}"
    yield f"  cache bytes {plan.cache_bytes:>15,.0f}   {plan.step_bytes:.1f} a step: {members}"


def _memory(plan: Plan) -> Iterator[str]:
    yield f"memory of one device at the most, GB of 10^9 bytes ({_shared(plan)})"
    heads = "".join(f"{name:>7}" for name in _PARTS.values())
    yield f"  {'':<15}{heads}{'all':>7} fits"
    for name, memory in plan.memory.items():
        cells = "".join(f"{_gb(memory.parts()[part]):>7}" for part in _PARTS)
        fits = "yes" if plan.fits(memory) else "NO"
        yield f"  {name[:15]:<15}{cells}{_gb(memory.total):>7} {fits}"


def _shared(plan: Plan) -> str:
    return "one process" if plan.strategy == "one" else f"training by {plan.strategy}"


def _gb(size: float) -> str:
    """Bytes in GB, three figures or so.

    Example:
        >>> _gb(0), _gb(1.234e7), _gb(5.432e8), _gb(2.345e10)
        ('-', '.012', '.543', '23.4')
    """
    if size <= 0:
        return "-"
    value = size / 1e9
    return f"{value:.3f}".lstrip("0") if value < 1 else f"{value:.{2 if value < 10 else 1}f}"


def _strategies(plan: Plan) -> Iterator[str]:
    if plan.job.processes == 1:
        yield from _wrapped(_fitting_teacher(plan))
        return
    yield f"how {plan.job.processes} processes can share the student, GB of one device"
    for name, memory in plan.strategies.items():
        fits = "fits" if plan.fits(memory) else "does NOT fit"
        mark = ", taken here" if name == plan.strategy else ""
        yield f"  {name:<8}{_gb(memory.total):>8}   {fits}{mark}"
    yield from _wrapped(_fitting_teacher(plan))


def _fitting_teacher(plan: Plan) -> str:
    """Whether the teacher can be sampled on one device, and what to do if not."""
    if plan.job.served:
        return "The teacher is on other machines."
    memory = plan.memory.get("rollouts", Memory())
    if plan.fits(memory):
        return "The teacher is sampled on one device."
    devices = int(-(-memory.total // plan.job.device.usable))
    return (
        f"The teacher needs {devices} devices or fewer bytes: teacher.backend: vllm with "
        "vllm.devices, weights.device_map: auto, weights.quantise, a smaller rollouts.batch_size"
    )


def _hours(plan: Plan) -> Iterator[str]:
    yield f"time: {duration(plan.seconds)} in all" + _beside(plan.stages)
    yield f"  {'stage':<24}{'tokens':>15} {'':<11}{'tokens/s':>11}{'time':>13}"
    for label, stages in _grouped(plan.stages).items():
        tokens = sum(stage.work.tokens for stage in stages)
        seconds = sum(stage.seconds for stage in stages)
        rate = f"{tokens / seconds:,.0f}" if seconds else "-"
        kind = _KINDS[stages[0].work.kind]
        origins = {stage.origin for stage in stages}
        took = min(origins) if origins <= {"done", "unknown"} else duration(seconds)
        yield f"  {label[:24]:<24}{tokens:>15,.0f} {kind:<11}{rate:>11}{took:>13}"
    if plan.job.processes > 1 and not plan.job.served:
        sampled = [s.seconds for s in plan.stages if s.work.kind == "sampling"]
        shared = duration(sum(sampled) / plan.job.processes)
        text = "The run samples and judges on one device. `tdistill rollouts --shard i/"
        yield from _wrapped(f"{text}{plan.job.processes}` on all of them samples in {shared}.")


def _beside(stages: Sequence[Timed]) -> str:
    done = sum(stage.seconds for stage in stages if stage.origin == "done")
    return f", {duration(done)} of work done before" if done else ""


def _grouped(stages: Sequence[Timed]) -> dict[str, list[Timed]]:
    """Stages by name, those of all seeds together, and all that judges in one."""
    found: dict[str, list[Timed]] = {}
    for stage in stages:
        judges = stage.work.kind == "judging"
        found.setdefault("judging" if judges else stage.work.stage, []).append(stage)
    for name, group in list(found.items()):
        if len(group) > 1:
            many = "models" if name == "judging" else "seeds"
            found[f"{name}, {len(group)} {many}"] = found.pop(name)
    return found


def _notes(plan: Plan) -> Iterator[str]:
    origins = plan.job.scale.origins
    assumed = [f"{name} ({_CURES[name]})" for name in _CURES if origins.get(name) == "assumed"]
    if assumed:
        yield from _wrapped(f"Assumed, not known: {', '.join(assumed)}.".replace("_", " "))
    sources = {stage.origin for stage in plan.stages}
    if "unknown" in sources:
        yield from _wrapped(
            "The server's pace is unknown: what it does, judging too, is in no sum. --rate "
            "sampling=N states the tokens a second that it samples."
        )
    if "assumed" in sources:
        yield from _wrapped(
            f"Rates are assumed of one {plan.job.device.name}; --probe measures those of this "
            "machine, --rate KIND=N states the tokens a second of one."
        )
    elif "measured" in sources:
        yield "Rates are measured."
    yield "Beside the tensors a process has its libraries: .5 to 1 GB."


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)
