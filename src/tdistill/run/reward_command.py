"""Reading the implied reward of given responses, and ranking and filtering them by it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tdistill.checks import check, check_at_least
from tdistill.data.config import DataConfig, Format, Template
from tdistill.errors import InvalidValueError
from tdistill.recipe import Recipe, read_recipe
from tdistill.run.folders import RESOLVED_RECIPE, model_folder
from tdistill.teacher.config import CaptureConfig
from tdistill.training.objectives import TemporalDifference

if TYPE_CHECKING:
    from tdistill.data import Example
    from tdistill.evaluation.reward import Reading
    from tdistill.evidence.rows import Row
    from tdistill.models.language_model import LanguageModel

_SHORT = 60


@dataclass(frozen=True)
class RewardCommand:
    """Read the implied reward Q - discount V' of given responses under a model, token by token.

    Several rows with the same prompt are candidates that are ranked against each other. Settings
    that are not given are those of --run, else: shift raw, discount 0.99, set_top_p 0.8.
    """

    data: str
    """Prompts with responses: JSONL, Parquet or a datasets folder (see DataConfig)."""
    out: Path
    """Folder to write: rewards.jsonl, rewards.html, with --best also best.jsonl."""
    model: str | None = None
    """The model that is read, a student or a teacher: a folder, a hub name, or package:NAME."""
    gguf_file: str | None = None
    """Name of a GGUF file in the model's folder."""
    teacher: str | None = None
    """Whose top-p sets the values are over; left out: the model's own sets."""
    teacher_gguf_file: str | None = None
    """Name of a GGUF file in the teacher's folder."""
    run: Path | None = None
    """Folder of a finished run, in place of model and teacher."""
    label: str | None = None
    """Which model of the run; left out: the one in its folder student/."""
    shift: Literal["raw", "set-max", "vocabulary-max", "normalised"] | None = None
    """The constant per state that turns logits into Q."""
    discount: float | None = None
    """Gamma."""
    set_top_p: float | None = None
    """Mass of the sets."""
    rank_by: Literal["mean", "total", "discounted"] = "mean"
    """Reward a token, its sum, or its discounted sum."""
    best: int | None = None
    """Also write the N best responses of each prompt, as data to train on."""
    batch_size: int = 8
    """Rows of one forward pass."""
    limit: int | None = None
    """Read only the first N rows of the data."""
    format: Format | None = None
    """Which columns of the data to read; likewise the following, as in DataConfig."""
    template: Template | None = None
    """How a prompt is rendered."""
    system: str | None = None
    """System message of rows that bring none."""
    max_prompt_tokens: int | None = None
    """Rows with a longer prompt are left out."""
    max_response_tokens: int | None = None
    """A longer response is cut."""


@dataclass(frozen=True)
class _Settings:
    """What is read and how, from the command or from a run."""

    model: str
    teacher: str | None
    objective: TemporalDifference
    capture: CaptureConfig
    data: DataConfig


def read_and_rank(command: RewardCommand) -> list[str]:
    """Do the command: read, rank, write the files.

    Args:
        command: what to read, and how.

    Returns:
        A summary, a line each.

    Raises:
        DataError: the data has no responses or cannot be read.
        ModelError: there is no model, or its tokenizer is not the teacher's.
        InvalidValueError: a setting has a value that cannot be used.
    """
    _check(command)
    settings = _settings(command)
    examples, records = _read(command, settings)
    command.out.mkdir(parents=True, exist_ok=True)
    _write_rows(command.out / "rewards.jsonl", records)
    files = ["rewards.jsonl", "rewards.html"]
    if command.best is not None:
        best = zip(examples, records, strict=True)
        best = [_as_data(example) for example, r in best if r["rank"] <= command.best]
        _write_rows(command.out / "best.jsonl", best)
        files.append("best.jsonl")
    o = settings.objective
    title = f"Implied reward under {settings.model}"
    how = f"shift {o.shift}, discount {o.discount}, ranked by {command.rank_by} reward; " + (
        f"sets of mass {o.set_top_p or settings.capture.captured_top_p} of "
        f"{settings.teacher or 'the model itself'}"
    )
    lines = _summary(records, command.rank_by)
    from tdistill.report.rewards import write_rewards_page

    write_rewards_page(records, command.out / files[1], title=title, lines=[how, *lines])
    return [title, how, *lines, *(f"{command.out / name}" for name in files)]


def _check(command: RewardCommand) -> None:
    # Not in __post_init__: the parser of command lines would print such an error its own way.
    given = f"model = {command.model} and run = {command.run}"
    check("model, run", (command.model is None) != (command.run is None), "exactly one", given)
    for name in ("teacher", "gguf_file", "teacher_gguf_file"):
        value = getattr(command, name)
        alone = command.run is None or value is None
        check(name, alone, "none beside run, which has its own models", value)
    alone = command.run is not None or command.label is None
    check("label", alone, "none without run", command.label)
    check_at_least(1, best=command.best, batch_size=command.batch_size)


def _settings(command: RewardCommand) -> _Settings:
    given = _given(command, ("shift", "discount", "set_top_p"))
    data: dict[str, Any] = {"train": command.data}
    data |= _given(
        command, ("format", "template", "system", "max_prompt_tokens", "max_response_tokens")
    )
    if command.run is not None:
        return _settings_of_run(command.run, command.label, given, data)
    assert command.model is not None, "checked before"
    objective = TemporalDifference(**given)
    capture = CaptureConfig(objective.set_top_p or 1.0, None)
    return _Settings(command.model, command.teacher, objective, capture, DataConfig(**data))


def _given(command: RewardCommand, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(command, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _settings_of_run(
    run: Path, label: str | None, given: dict[str, Any], data: dict[str, Any]
) -> _Settings:
    """How the model of a run was trained, less what was ``given`` otherwise."""
    recipe = _finished_recipe(run)
    label = label or recipe.distilled
    check("label", label in ("teacher", "start", *recipe.objectives), "a model of the run", label)
    trained = recipe.objectives.get(label, recipe.objectives[recipe.distilled])
    names = ("shift", "q_min", "discount", "set_top_p")
    own = {name: getattr(trained, name) for name in names if hasattr(trained, name)}
    objective = TemporalDifference(**(own | given))
    capture = recipe.rollouts.capture
    most = max(capture.captured_top_p, objective.set_top_p or 0.0)
    return _Settings(
        str(model_folder(recipe, run, label)),
        None if label == "teacher" else str(model_folder(recipe, run, "teacher")),
        objective,
        replace(capture, captured_top_p=most),
        replace(recipe.data, **data),
    )


def _finished_recipe(run: Path) -> Recipe:
    path = run / RESOLVED_RECIPE
    if not path.exists():
        raise InvalidValueError(
            f"run: expected the folder of a run, with {RESOLVED_RECIPE}; found none in "
            f"{run}; give a folder that `tdistill run` wrote"
        )
    return read_recipe(path)


def _read(
    command: RewardCommand, settings: _Settings
) -> tuple[list[Example], list[dict[str, Any]]]:
    """Every response, and its line of ``rewards.jsonl``."""
    from tdistill.data import load_examples
    from tdistill.evaluation.reward import read_rewards
    from tdistill.evidence.rows import Row
    from tdistill.models.language_model import load, shared_vocabulary
    from tdistill.progress import Progress
    from tdistill.teacher.source import LiveTeacher

    model = load(settings.model, gguf_file=command.gguf_file)
    teacher, size = model, model.vocabulary_size
    if settings.teacher is not None:
        teacher = load(settings.teacher, gguf_file=command.teacher_gguf_file)
        size = shared_vocabulary(teacher, model)
    examples, _ = load_examples(
        command.data,
        model.tokenizer,
        settings.data,
        limit=command.limit,
        require_references=True,
        every_response=True,
    )
    rows = [Row(e.prompt_ids, e.reference_ids, e.reference_ended, "reference") for e in examples]
    bar = Progress("reward", len(rows))
    readings = read_rewards(
        model,
        settings.objective,
        rows,
        LiveTeacher(teacher, settings.capture, vocabulary_size=size),
        vocabulary_size=size,
        batch_size=command.batch_size,
        on_batch=lambda done: bar.update(bar.done + done, "responses"),
    )
    bar.close()
    records = [
        _record(example, row, reading, model, with_teacher=settings.teacher is not None)
        for example, row, reading in zip(examples, rows, readings, strict=True)
    ]
    return examples, _ranked(records, rows, command.rank_by)


def _record(
    example: Example, row: Row, reading: Reading, model: LanguageModel, *, with_teacher: bool
) -> dict[str, Any]:
    """Sums first, then the numbers of every token."""
    from tdistill.evaluation.reward import token_texts

    sums = {
        "prompt": example.question or example.prompt,
        "response": example.references[0],
        "mean_reward": reading.mean,
        "total_reward": reading.total,
        "discounted_reward": reading.discounted,
        "log_prob_per_token": _mean(reading.log_prob),
        "off_set_tokens": sum(reading.off_set),
        "ended": row.ended,
    }
    tokens = {
        "tokens": token_texts(model, row),
        "implied_reward": list(reading.implied_reward),
        "value": list(reading.value),
        "log_prob": list(reading.log_prob),
    }
    if with_teacher:
        sums["teacher_log_prob_per_token"] = _mean(reading.teacher_log_prob)
        tokens["teacher_log_prob"] = list(reading.teacher_log_prob)
    return sums | tokens


def _ranked(
    records: Sequence[dict[str, Any]], rows: Sequence[Row], rank_by: str
) -> list[dict[str, Any]]:
    """The records with the number of their prompt and their rank among its responses."""
    from tdistill.evaluation.ranking import ranks_within

    numbers: dict[tuple[int, ...], int] = {}
    prompts = [numbers.setdefault(row.prompt_ids, len(numbers)) for row in rows]
    ranks = ranks_within(prompts, [record[f"{rank_by}_reward"] for record in records])
    return [
        {"prompt_number": prompt, "rank": rank, **record}
        for prompt, rank, record in zip(prompts, ranks, records, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _as_data(example: Example) -> dict[str, Any]:
    """A row that the data loader reads back as the same prompt and response."""
    from tdistill.data.formats import Instruction

    prompt, response = example.row_prompt, example.references[0]
    if isinstance(prompt, Instruction):
        return {"instruction": prompt.instruction, "input": prompt.input, "output": response}
    turns = prompt if isinstance(prompt, str) else list(prompt)
    return {"prompt": turns, "completion": response}


def _summary(records: Sequence[dict[str, Any]], rank_by: str) -> list[str]:
    from tdistill.evaluation.ranking import spearman, spearman_within

    by = f"{rank_by}_reward"
    known = [r for r in records if r[by] is not None]
    prompts = len({r["prompt_number"] for r in records})
    lines = [f"{len(records)} responses to {prompts} prompts"]
    if not known:
        return [*lines, "no reward is known: every response was cut after its first token"]
    rewards, likely = [r[by] for r in known], [r["log_prob_per_token"] for r in known]
    lines.append(
        f"mean reward {_mean([r['mean_reward'] for r in known]):.2f} nats a token, "
        f"log-probability {_mean(likely):.2f} nats a token (means over responses)"
    )
    within = spearman_within([r["prompt_number"] for r in known], rewards, likely)
    overall = spearman(rewards, likely)
    parts = [f"{_mean(within):.2f} within a prompt ({len(within)} prompts)"] if within else []
    parts += [f"{overall:.2f} over all responses"] if overall is not None else []
    if parts:
        lines.append(f"rank correlation with log-probability a token: {', '.join(parts)}")
    order = sorted(known, key=lambda r: -r[by])
    for name, record in (("best", order[0]), ("worst", order[-1])):
        text = " ".join(record["response"].split())
        short = text if len(text) <= _SHORT else text[: _SHORT - 1] + "\N{HORIZONTAL ELLIPSIS}"
        lines.append(f"{name} {record[by]:8.2f}  {short}")
    return lines


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    # ASCII: a response may hold half a surrogate pair, which UTF-8 cannot.
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
