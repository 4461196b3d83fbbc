"""What a student gives up: steps at which it departs from its teacher to spare itself a cost."""

from __future__ import annotations

from dataclasses import dataclass

from tdistill.report.measures import model_name, number
from tdistill.report.result import MemberValue, StepValues, ValueTrace
from tdistill.report.tokens import visible

_CONTEXT = 8  # tokens before a step that are shown


@dataclass(frozen=True)
class MemberView:
    """One member as drawn: its probabilities in per cent, and its cost beside the mean."""

    text: str
    teacher: str
    student: str
    cost: str
    cheap: bool
    taken: bool


@dataclass(frozen=True)
class StepView:
    """One step as drawn."""

    context: str
    spared: str
    members: list[MemberView]


@dataclass(frozen=True)
class ValueView:
    """One response as drawn."""

    prompt: str
    model: str
    steps: list[StepView]


def value_view(trace: ValueTrace) -> ValueView:
    """Turn a response's steps into small tables."""
    steps = [_step(trace, step) for step in trace.steps]
    return ValueView(trace.prompt, model_name(trace.model), steps)


def _step(trace: ValueTrace, step: StepValues) -> StepView:
    at = step["step"]
    before = "".join(trace.tokens[max(0, at - _CONTEXT) : at])
    context = ("\N{HORIZONTAL ELLIPSIS}" if at > _CONTEXT else "") + " ".join(before.split())
    members = [_member(m, trace.tokens[at]) for m in step["members"]]
    return StepView(context, number(step["spared"], 3), members)


def _member(member: MemberValue, taken: str) -> MemberView:
    return MemberView(
        text=visible(member["token"])[0],
        teacher=number(100 * member["teacher"], 1),
        student=number(100 * member["student"], 1),
        cost=number(member["cost"], 3),
        cheap=member["cost"] < 0,
        taken=member["token"] == taken,
    )
