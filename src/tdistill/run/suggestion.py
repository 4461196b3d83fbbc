"""A first recipe for somebody's own models and data: what is seen of both, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tdistill.data import DataConfig, DoctorReport, load_examples
from tdistill.data.sources import read_rows
from tdistill.files import expanded
from tdistill.models.architecture import architecture_of
from tdistill.models.language_model import load_config, parameters_of
from tdistill.report.measures import count

_LOOKED_AT = 1000  # rows whose tokens are counted
_SHARE = 0.99  # of the prompts, and of the responses, that the suggested limits hold
_STEP = 32
_NO_LIMIT = 1 << 20  # tokens
_KEPT = 0.6  # of the layers
_MOST_NEW = 512


@dataclass(frozen=True)
class Suggestion:
    """What the template of a ready recipe asks for.

    Attributes:
        recipe: name of its file.
        teacher: path as the recipe has it; likewise ``train``.
        teacher_facts: what was seen of it, in lines; likewise ``data_facts``.
        layers: of the student, of ``depth``.
        max_prompt_tokens: and the others: lengths in tokens.
        start_rows: what the common start is trained on.
    """

    recipe: str
    teacher: str
    train: str
    teacher_facts: tuple[str, ...] = ("a folder, or hub:OWNER/NAME; --teacher has it looked at",)
    data_facts: tuple[str, ...] = (
        "JSONL, Parquet, CSV or hub:OWNER/NAME; --data has it looked at",
    )
    depth: int | str = "layers"
    layers: int = 12
    max_prompt_tokens: int = 256
    max_response_tokens: int = 256
    max_new_tokens: int = 128
    start_rows: str = "teacher"

    def values(self) -> dict[str, Any]:
        """By the names that the templates use."""
        return asdict(self)


def see_teacher(path: str, tokenizer: Any) -> dict[str, Any]:
    """Fields of a `Suggestion` that follow from a teacher's configuration and tokenizer.

    Args:
        path: of the teacher.
        tokenizer: of the teacher.

    Raises:
        ModelError: there is no model that can be used.
    """
    config: Any = load_config(path)
    depth = config.get_text_config().num_hidden_layers
    name = architecture_of(config)
    template = "a chat template" if tokenizer.chat_template else "no chat template"
    size = count(parameters_of(config))
    facts = (f"{name}, {size} parameters, {depth} layers; {template}",)
    return {"teacher_facts": facts, "depth": depth, "layers": max(1, round(_KEPT * depth))}


def see_data(source: str, tokenizer: Any) -> dict[str, Any]:
    """Fields of a `Suggestion` that follow from prompts and responses.

    Args:
        source: as in ``DataConfig``.
        tokenizer: of the teacher; None: of no teacher, so that rows are only counted.

    Raises:
        DataError: the source cannot be read without guessing.
    """
    rows = read_rows(source)
    if tokenizer is None:
        columns = ", ".join(dict.fromkeys(name for row in rows[:1] for name in row.values))
        return {"data_facts": (f"{len(rows)} rows with {columns}; --teacher counts tokens",)}
    config = DataConfig(train=source, max_prompt_tokens=_NO_LIMIT, max_response_tokens=_NO_LIMIT)
    examples, report = load_examples(source, tokenizer, config, rows=rows[:_LOOKED_AT])
    prompts = [len(example.prompt_ids) for example in examples]
    responses = [len(example.reference_ids) for example in examples if example.reference_ids]
    found: dict[str, Any] = {
        "data_facts": tuple(_data_facts(len(rows), report, prompts, responses)),
        "max_prompt_tokens": _limit(prompts),
    }
    if responses:
        limit = _limit(responses)
        found |= {"max_response_tokens": limit, "max_new_tokens": min(limit, _MOST_NEW)}
    if len(responses) == len(examples):
        found["start_rows"] = "both"
    return found


def _data_facts(
    rows: int, report: DoctorReport, prompts: Sequence[int], responses: Sequence[int]
) -> list[str]:
    used = ", ".join(f"{column} ({role})" for role, column in report.roles.items())
    ignored = f"; not used: {', '.join(report.ignored)}" if report.ignored else ""
    seen = "" if rows <= _LOOKED_AT else f", the first {_LOOKED_AT} looked at"
    lines = [
        f"{rows} rows{seen}; columns {used}{ignored}; template {report.template}",
        f"tokens: prompts up to {max(prompts)}, {_SHARE:.0%} within {_quantile(prompts)}",
    ]
    if responses:
        lines[1] += f"; responses up to {max(responses)}, {_quantile(responses)}"
    else:
        lines[1] += "; no responses, so students start from the teacher's own"
    lines += [f"{number} rows: {reason}" for reason, number in report.faults.items()]
    return lines


def _quantile(lengths: Sequence[int]) -> int:
    """The length within which nearly all are.

    Example:
        >>> _quantile(list(range(1, 201)))
        198
    """
    return sorted(lengths)[max(0, -(-round(_SHARE * 100) * len(lengths) // 100) - 1)]


def _limit(lengths: Sequence[int]) -> int:
    """A round number that holds nearly all lengths.

    Example:
        >>> _limit([5, 7, 33])
        64
    """
    return -(-_quantile(lengths) // _STEP) * _STEP


def path_beside(recipe: Path, path: str) -> str:
    """A path of the current folder as a recipe says it: from its own folder, if it is inside."""
    place = expanded(path)
    if not place.exists():
        return path
    folder, place = recipe.absolute().parent, place.absolute()
    return str(place.relative_to(folder)) if place.is_relative_to(folder) else str(place)
