"""One form for a row of every format: the prompt before rendering, and its responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdistill.data.columns import SourceColumns
from tdistill.data.config import TrainedTurns
from tdistill.data.messages import Message, TurnError, check_text, read_messages, read_tools
from tdistill.data.readers import SourceRow, type_name
from tdistill.errors import DataError


@dataclass(frozen=True)
class Instruction:
    """An instruction with an optional input, not yet rendered."""

    instruction: str
    input: str = ""


Prompt = str | Instruction | tuple[Message, ...]
Response = str | Message
"""A response before rendering: text, or an assistant's turn that has more than text."""


@dataclass(frozen=True)
class PromptRecord:
    """One row in one form, whatever its columns: the prompt before rendering and its responses.

    ``references`` is empty where the row has none; ``blank_reference`` says that it had one of
    white space only. ``tools`` and ``system`` are those of the row.
    """

    where: str
    prompt: Prompt
    references: tuple[Response, ...]
    blank_reference: bool
    tools: tuple[Message, ...] = ()
    system: str | None = None

    @property
    def question(self) -> str:
        """What the user asks, without any template: for showing, not for tokenising."""
        if isinstance(self.prompt, str):
            return self.prompt
        if isinstance(self.prompt, Instruction):
            return f"{self.prompt.instruction}\n{self.prompt.input}".strip()
        asked = [turn["content"] for turn in self.prompt if turn["role"] == "user"]
        return asked[-1] if asked else ""


def text_of_response(response: Response) -> str:
    """The text of a response, without its reasoning and its tool calls."""
    return response if isinstance(response, str) else response.get("content", "")


def parse_records(
    row: SourceRow, columns: SourceColumns, trained_turns: TrainedTurns = "last"
) -> list[PromptRecord]:
    """Read one row.

    Args:
        row: the row.
        columns: the roles of its columns.
        trained_turns: ``last``: the row is one prompt, and its response if the last turn is an
            assistant's; ``all``: each assistant's turn is a response to what precedes it.

    Returns:
        The records; a prompt is empty text where the row has none.

    Raises:
        DataError: a value has the wrong type, with the place, the column and the type found.
    """
    reader = _RowReader(row, columns)
    references = reader.references()
    if "messages" in columns.roles:
        turns = reader.messages("messages")
        return [
            reader.record(prompt, [*answers, *(references if last else [])])
            for prompt, answers, last in _divided(turns, trained_turns)
        ]
    if "instruction" in columns.roles:
        prompt: Prompt = Instruction(reader.text("instruction"), reader.text("input"))
    else:
        prompt = reader.prompt()
    return [reader.record(prompt, [*reader.completions(prompt), *references])]


def _divided(
    turns: tuple[Message, ...], trained_turns: TrainedTurns
) -> list[tuple[tuple[Message, ...], list[Response], bool]]:
    """Prompt turns and response of each example, and whether it is the last."""
    ends = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    if trained_turns == "last":
        ends = [i for i in ends if i == len(turns) - 1]
    ends = [i for i in ends if _is_trained(turns[i])]
    parts: list[tuple[tuple[Message, ...], list[Response], bool]] = [
        (turns[:i], [_simplest(turns[i])], i == len(turns) - 1) for i in ends
    ]
    if not ends or turns[-1]["role"] != "assistant":
        answered = bool(turns) and turns[-1]["role"] == "assistant"
        parts.append((turns[:-1] if answered else turns, [], True))
    return parts


def _is_trained(turn: Message) -> bool:
    """Whether nothing says that a turn is only there to be read."""
    # OpenAI's field and those of axolotl, ms-swift and XTuner; 0 is false.
    said = (turn.get(name) for name in ("weight", "train", "training", "loss", "trainable"))
    return not any(isinstance(value, int | float) and value == 0 for value in said)


def _simplest(turn: Message) -> Response:
    return turn["content"] if set(turn) == {"role", "content"} else turn


def is_blank_response(response: Response) -> bool:
    """Whether a response has neither text but white space, nor reasoning, nor tool calls."""
    if not isinstance(response, str):
        more = response.get("tool_calls") or response.get("reasoning_content", "").strip()
        return not more and not text_of_response(response).strip()
    return not response.strip()


class _RowReader:
    """The values of one row by role, each checked when it is asked for."""

    def __init__(self, row: SourceRow, columns: SourceColumns) -> None:
        self.row, self.columns = row, columns
        self.values = {role: row.values.get(column) for role, column in columns.roles.items()}
        for role, value in self.values.items():
            check_text(value, f"{row.where}, column {columns.roles[role]}")

    def record(self, prompt: Prompt, responses: Sequence[Response]) -> PromptRecord:
        kept: list[Response] = []
        for response in responses:
            if not is_blank_response(response) and response not in kept:
                kept.append(response)
        return PromptRecord(
            self.row.where,
            prompt,
            tuple(kept),
            blank_reference=bool(responses) and not kept,
            tools=self.tools(),
            system=self.text("system") or None,
        )

    def tools(self) -> tuple[Message, ...]:
        try:
            return read_tools(self.values.get("tools"))
        except TurnError as error:
            raise self.wrong("tools", error.expected, error.found) from error

    def text(self, role: str) -> str:
        value = self.values.get(role)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(role, "text", type_name(value))
        return value

    def messages(self, role: str) -> tuple[Message, ...]:
        value = self.values[role]
        if value is None:
            return ()
        try:
            return read_messages(value)
        except TurnError as error:
            raise self.wrong(role, error.expected, error.found) from error

    def prompt(self) -> Prompt:
        if not isinstance(self.values["prompt"], list):
            return self.text("prompt")
        turns = self.messages("prompt")
        if turns and turns[-1]["role"] == "assistant":
            raise self.wrong("prompt", "turns that end on a user turn", "an assistant turn")
        return turns

    def completions(self, prompt: Prompt) -> list[Response]:
        role = "output" if "instruction" in self.columns.format else "completion"
        value = self.values.get(role)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [self._answer(role, prompt)]
        return self._texts(role)

    def references(self) -> list[Response]:
        return self._texts("references")

    def _answer(self, role: str, prompt: Prompt) -> Response:
        """The one assistant turn, before which the prompt may stand again, as in preferences."""
        turns = self.messages(role)
        again = tuple(turns[:-1])
        asked = prompt if isinstance(prompt, tuple) else ({"role": "user", "content": prompt},)
        if turns[-1]["role"] != "assistant" or again not in ((), asked):
            found = f"turns of {', '.join(turn['role'] for turn in turns)}"
            raise self.wrong(role, "one assistant turn, or the prompt's turns and one", found)
        return _simplest(turns[-1])

    def _texts(self, role: str) -> list[Response]:
        value = self.values.get(role)
        if value is None:
            return []
        expected = "text or a list of texts"
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list):
            raise self.wrong(role, expected, type_name(value))
        for item in value:
            if not isinstance(item, str):
                raise self.wrong(role, expected, f"a list with {type_name(item)}")
        return list(value)

    def wrong(self, role: str, expected: str, found: str) -> DataError:
        return DataError(
            f"{self.row.where}, column {self.columns.roles[role]}: expected {expected}; "
            f"found {found}. Correct the row, or rename the column if it is not meant for this."
        )
