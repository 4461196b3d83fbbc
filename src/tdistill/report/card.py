"""The model card of a student: README.md with the metadata of the hub, from one typed result.

Prompts, responses and names come from models and data of strangers. In a line every mark of
Markdown among them is written out; longer texts stand in a fence that is longer than any in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tdistill.errors import excerpt, printable, without_controls
from tdistill.files import hub_name, last_name
from tdistill.report.facts import Fact, facts
from tdistill.report.findings import caveat
from tdistill.report.headline import headline
from tdistill.report.measures import (
    count,
    decoding_phrase,
    interval,
    listed,
    model_name,
    number,
    verdict,
)
from tdistill.report.page import templates
from tdistill.report.result import START, TEACHER, Estimate, Result
from tdistill.report.tables import Column, shown_first, table_columns

_SAMPLES = 2
# What begins a link, markup, code, emphasis, a table cell or a formula; addresses link themselves.
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&!$@]|:(?=//)|(?<=www)\.)")
_FENCE = re.compile(r"`+")
_UNIT_OF_SIZE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Origin:
    """What is known of the teacher beside the result.

    Attributes:
        name: what people call it.
        repository: its name on the hub, if it has one.
        license: as its own card says, in the hub's words.
        chat: whether its tokenizer has a chat template.
    """

    name: str
    repository: str | None = None
    license: str | None = None
    chat: bool = False


def model_card(result: Result, origin: Origin) -> str:
    """The README.md of the distilled student.

    Args:
        result: of the run.
        origin: of its teacher.
    """
    columns = [c for c in table_columns(result) if c.metric != "seconds"]
    labels = [TEACHER, START, result.distilled]
    environment = templates().overlay(autoescape=False)
    environment.filters |= {"md": in_a_line, "fenced": fenced}
    page = environment.get_template("card.md.j2").render(
        metadata=_metadata(result, origin, columns),
        title=student_title(result, origin),
        lead=_lead(result, origin),
        headline=headline(result),
        origin=origin,
        result=result,
        most_tokens=result.recipe["evaluation"]["max_new_tokens"],
        heads=[*map(model_name, labels), "less the start"],
        rows=[_row(result, column, labels) for column in columns],
        caveat=caveat(result),
        worse=list(_worse(result, columns)),
        made=_made(result, origin),
        recipe=_recipe_text(result),
        samples=_samples(result),
        license=_license(origin),
    )
    return without_controls(page).rstrip() + "\n"


def in_a_line(text: str) -> str:
    r"""A text that is only read, wherever it stands in a line of Markdown.

    Example:
        >>> print(in_a_line("a|b\n<script> [x](y) http://z 0.5"))
        a\|b \<script\> \[x\](y) http\://z 0.5
    """
    return _MARKS.sub(r"\\\1", printable(" ".join(str(text).split())))


def fenced(text: str, kind: str) -> str:
    """A text as a block that shows it as it is.

    Example:
        >>> print(fenced("a ``` b", "text"))
        ````text
        a ``` b
        ````
    """
    longest = max((len(run) for run in _FENCE.findall(text)), default=0)
    marks = "`" * max(3, longest + 1)
    shown = printable(text).rstrip("\n")
    return f"{marks}{kind}\n{shown}\n{marks}"


def student_title(result: Result, origin: Origin) -> str:
    """A name for the student: its teacher's, its size and its objective."""
    size = count(result.parameters[result.distilled])
    return _UNIT_OF_SIZE.sub("-", f"{origin.name}-{size}-{result.distilled}")


def _lead(result: Result, origin: Origin) -> str:
    teacher, student = (count(result.parameters[x]) for x in (TEACHER, result.distilled))
    return (
        f"A student of {student} parameters of {origin.name} ({teacher}), distilled with "
        f"tdistill {result.versions.get('tdistill', '')} by the objective {result.distilled}."
    )


def _metadata(result: Result, origin: Origin, columns: list[Column]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    source = hub_name(str(result.recipe["data"]["train"]))
    dataset = source or "held-out prompts"
    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type=source or "custom",
            dataset_name=dataset,
            metric_type=column.metric,
            metric_name=f"{column.title} {interval(own, column.measure.digits)}",
            metric_value=round(own.mean, 4),
        )
        for column in columns
        if (own := result.estimate(result.distilled, column.metric, column.decoding)) is not None
    ]
    data = ModelCardData(
        model_name=student_title(result, origin),
        base_model=origin.repository,
        license=origin.license,
        datasets=None if source is None else [source],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation", "tdistill"],
        eval_results=scores,
    )
    return data.to_yaml()


def _row(result: Result, column: Column, labels: list[str]) -> list[str]:
    what = column.measure
    own = [result.estimate(label, column.metric, column.decoding) for label in labels]
    less = result.difference(START, result.distilled, column.metric, column.decoding)
    turned = None if less is None else -less
    arrow = {1: ", higher is better", -1: ", lower is better", 0: ""}[what.better]
    unit = f" ({what.unit})" if what.unit else ""
    cells = [_cell(estimate, what.digits) for estimate in (*own, turned)]
    found = verdict(turned, what)
    return [f"{column.title}{unit}{arrow}", *cells[:-1], f"{cells[-1]} {found}".strip()]


def _cell(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return ""
    bounds = "" if estimate.low is None else f" {interval(estimate, digits)}"
    return f"{number(estimate.mean, digits)}{bounds}"


def _worse(result: Result, columns: list[Column]) -> Iterator[str]:
    """Whom it is behind, and in what: paired intervals without 0."""
    others = [TEACHER, START, *(x for x in result.objectives if x != result.distilled)]
    for label in others:
        behind = [c for c in columns if _is_behind(result, label, c)]
        if behind:
            names = [f"{c.measure.title}{_where(c)}" for c in behind]
            yield f"than {model_name(label)}: {listed(list(dict.fromkeys(names)))}"


def _is_behind(result: Result, label: str, column: Column) -> bool:
    difference = result.difference(label, result.distilled, column.metric, column.decoding)
    return verdict(difference, column.measure) == "better"


def _where(column: Column) -> str:
    return "" if column.decoding is None else f" {decoding_phrase(column.decoding)}"


def _made(result: Result, origin: Origin) -> list[Fact]:
    recipe, counts = result.recipe, result.counts
    teacher = origin.name if origin.repository is None else f"hub:{origin.repository}"
    layers = ", ".join(map(str, result.layers.get("kept", ())))
    own = last_name(recipe["student"]["path"] or "")
    student = f"the teacher's layers {layers}" if layers else own
    start, training = recipe["start"], recipe["training"]
    objective = facts(recipe["objectives"][result.distilled])
    told = [
        Fact("teacher", teacher),
        Fact("student before training", student),
        Fact("prompts", f"{counts['train_prompts']} of {last_name(recipe['data']['train'])}"),
        Fact(
            "teacher responses",
            f"{counts['rollout_rows']} with {counts['rollout_steps']:,} tokens, from its "
            f"{recipe['rollouts']['sampling_top_p']} nucleus",
        ),
        Fact("objective", ", ".join(f"{fact.name} {fact.value}" for fact in objective)),
        Fact(
            "updates",
            ("" if start is None else f"{start['training']['steps']} of cross-entropy, then ")
            + f"{training['steps']} of {training['batch_size']} responses",
        ),
        Fact("versions", ", ".join(f"{name} {text}" for name, text in result.versions.items())),
    ]
    return [fact for fact in told if fact.value]


def _recipe_text(result: Result) -> str:
    import yaml

    return yaml.safe_dump(_without_places(result.recipe), sort_keys=False, width=100)


def _without_places(value: Any) -> Any:
    """A recipe that says nothing of the machine: of a path only the last name is left."""
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(inner) for inner in value]
    return last_name(value) if isinstance(value, str) else value


def _samples(result: Result) -> list[dict[str, Any]]:
    return [
        {
            "prompt": sample.prompt,
            "responses": [
                (model_name(label), sample.responses[label].strip())
                for label in shown_first(result, sample.responses)[:3]
            ],
        }
        for sample in result.samples[:_SAMPLES]
    ]


def _license(origin: Origin) -> str:
    if origin.license is None:
        return (
            f"That of the teacher, {excerpt(origin.name)}, which was not found beside it: look it "
            "up, and name it in the metadata above, before you hand this model on."
        )
    return f"{origin.license}, as the teacher's own card says; a student made of its weights has it"
