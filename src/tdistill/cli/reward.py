"""The command that reads the implied reward of given responses, and ranks and filters by it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tyro

from tdistill.checks import check, check_at_least
from tdistill.cli.options import DATA_FIELDS, ReadingOptions, given_fields
from tdistill.data.config import DataConfig
from tdistill.files import write_atomically
from tdistill.models.weights import WeightsConfig
from tdistill.progress import quiet_libraries, tell

if TYPE_CHECKING:
    from tdistill.data import Example
    from tdistill.teacher.config import CaptureConfig
    from tdistill.training.objectives import CriticConfig, TemporalDifference

_OF_OBJECTIVE = ("shift", "discount", "set_top_p")


@dataclass(frozen=True)
class RewardCommand(ReadingOptions):
    """Read the implied reward Q - discount V' of given responses under a model, token by token.

    Several rows with the same prompt are candidates that are ranked against each other. Settings
    that are not given are those of --run, else: shift raw, discount 0.99, set_top_p 0.8. Where the
    model of a run has a kept critic, rewards.jsonl has its costs to go, too.
    """

    data: str
    """Prompts with responses: JSONL, Parquet or a datasets folder (see DataConfig)."""
    out: Path
    """Folder to write: rewards.jsonl, rewards.html, with --best also best.jsonl."""
    model: str | None = None
    """The model that is read, a student or a teacher: a folder, hub:NAME, or package:NAME."""
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


class _Settings(NamedTuple):
    """What is read and how, from the command or from a run."""

    model: str
    teacher: str | None
    objective: TemporalDifference
    capture: CaptureConfig
    data: DataConfig
    critic: CriticConfig | None = None  # of the critic that lies beside the model
    clock: datetime | None = None  # what a chat template is told that asks for the date


def reward(words: list[str]) -> int:
    """Read and rank responses, and say what was found."""
    command = tyro.cli(RewardCommand, args=words, prog="tdistill reward")
    quiet_libraries()
    tell("\n".join(read_and_rank(command)))
    return 0


def read_and_rank(command: RewardCommand) -> list[str]:
    """Do the command: read, rank, write the files.

    Returns:
        A summary, a line each.

    Raises:
        DataError: the data has no responses or cannot be read.
        ModelError: there is no model, or its tokenizer is not the teacher's.
        InvalidValueError: a setting has a value that cannot be used.
    """
    _check(command)
    settings = _settings(command)
    from tdistill.models.finite import keeping_bad_batch

    with keeping_bad_batch(command.out / "failed.json"):
        examples, records = _read(command, settings)
    from tdistill.evaluation.candidates import ranking_summary
    from tdistill.report.rewards import write_rewards_page

    title, how = f"Implied reward under {settings.model}", _how(settings, command.rank_by)
    lines = [how, *ranking_summary(records, command.rank_by)]
    files = [command.out / "rewards.jsonl", command.out / "rewards.html"]
    command.out.mkdir(parents=True, exist_ok=True)
    _write_rows(files[0], records)
    write_rewards_page(records, files[1], title=title, lines=lines)
    if command.best is not None:
        files.append(command.out / "best.jsonl")
        pairs = zip(examples, records, strict=True)
        _write_rows(files[2], [_as_data(e) for e, r in pairs if r["rank"] <= command.best])
    return [title, *lines, *map(str, files)]


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
    from tdistill.teacher.config import CaptureConfig
    from tdistill.training.objectives import TemporalDifference

    data: dict[str, Any] = {"train": command.data} | given_fields(command, DATA_FIELDS)
    if command.run is not None:
        return _settings_of_run(command, command.run, data)
    assert command.model is not None, "checked before"
    objective = TemporalDifference(**given_fields(command, _OF_OBJECTIVE))
    capture = CaptureConfig(objective.set_top_p or 1.0, None)
    return _Settings(command.model, command.teacher, objective, capture, DataConfig(**data))


def _settings_of_run(command: RewardCommand, run: Path, data: dict[str, Any]) -> _Settings:
    """How the model of a run was trained, less what the command gives otherwise."""
    from tdistill.recipe import read_recipe
    from tdistill.run.examples import read_clock
    from tdistill.run.folders import model_folder, resolved_recipe
    from tdistill.training.critic import CRITIC_FILE
    from tdistill.training.objectives import TemporalDifference

    recipe = read_recipe(resolved_recipe(run))
    label = command.label or recipe.distilled
    check("label", label in ("teacher", "start", *recipe.objectives), "a model of the run", label)
    trained = recipe.objectives.get(label, recipe.objectives[recipe.distilled])
    names = (*_OF_OBJECTIVE, "q_min")
    own = {name: getattr(trained, name) for name in names if hasattr(trained, name)}
    objective = TemporalDifference(**(own | given_fields(command, _OF_OBJECTIVE)))
    capture = recipe.rollouts.capture
    most = max(capture.captured_top_p, objective.set_top_p or 0.0)
    folder, config = model_folder(recipe, run, label), trained.critic_config
    kept = label in recipe.objectives and (folder / CRITIC_FILE).exists()
    return _Settings(
        str(folder),
        None if label == "teacher" else str(model_folder(recipe, run, "teacher")),
        objective,
        replace(capture, captured_top_p=most),
        replace(recipe.data, **data),
        config if kept else None,
        read_clock(run),
    )


def _read(command: RewardCommand, wanted: _Settings) -> tuple[list[Example], list[dict[str, Any]]]:
    """Every response, and its line of ``rewards.jsonl``."""
    from tdistill.data import load_examples
    from tdistill.evaluation.candidates import ranked_rewards
    from tdistill.teacher.loading import load_stopping
    from tdistill.training.critic import load_critic

    data, teacher = wanted.data, None
    weights = WeightsConfig(command.dtype)
    model = load_stopping(wanted.model, data, gguf_file=command.gguf_file, weights=weights)
    if wanted.teacher is not None:
        file = command.teacher_gguf_file
        teacher = load_stopping(wanted.teacher, data, gguf_file=file, weights=weights)
    examples, _ = load_examples(
        command.data,
        model.tokenizer,
        wanted.data,
        limit=command.limit,
        require_references=True,
        every_response=True,
        clock=wanted.clock,
    )
    critic = None
    if wanted.critic is not None:
        critic = load_critic(Path(wanted.model), wanted.critic).to(model.device)
    how = {"rank_by": command.rank_by, "batch_size": command.batch_size, "critic": critic}
    return examples, ranked_rewards(
        examples, model, teacher, wanted.objective, wanted.capture, **how
    )


def _how(settings: _Settings, rank_by: str) -> str:
    objective = settings.objective
    mass = objective.set_top_p or settings.capture.captured_top_p
    return (
        f"shift {objective.shift}, discount {objective.discount}, ranked by {rank_by} reward; "
        f"sets of mass {mass} of {settings.teacher or 'the model itself'}"
    )


def _as_data(example: Example) -> dict[str, Any]:
    """A row that the data loader reads back as the same prompt and response."""
    from tdistill.data.formats import Instruction

    prompt, response = example.row_prompt, example.row_response
    answer = response if isinstance(response, str) else [response]
    more: dict[str, Any] = {"tools": list(example.tools)} if example.tools else {}
    more |= {"system": example.system} if example.system else {}
    if isinstance(prompt, Instruction):
        asked = {"instruction": prompt.instruction, "input": prompt.input}
        return {**asked, "output": answer, **more}
    turns = prompt if isinstance(prompt, str) else list(prompt)
    return {"prompt": turns, "completion": answer, **more}


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    # ASCII: a response may hold half a surrogate pair, which UTF-8 cannot.
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, text)
