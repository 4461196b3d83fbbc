"""Which columns hold the prompt and the response: decided once per source, refused when unclear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tdistill.data.config import Format, Template
from tdistill.data.sources import SourceRow, type_name
from tdistill.errors import DataError

Message = dict[str, Any]

# Several names of one role; two of them in one source are refused.
ALIASES: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt": ("prompt",),
    "completion": ("completion",),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response"),
    "references": ("references", "outputs"),
    "text": ("text",),
}
ROLES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "references"),
    "prompt-completion": ("prompt", "completion", "references"),
    "instruction": ("instruction", "input", "output", "references"),
}
REQUIRED = {"messages": "messages", "prompt-completion": "prompt", "instruction": "instruction"}
FORMATS_UNDERSTOOD = (
    "messages: messages; prompt-completion: prompt, completion; "
    "instruction: instruction, input or context, output or response; "
    "each with optional references or outputs; text: text (for data.lm_text only)"
)


@dataclass(frozen=True)
class Instruction:
    """An instruction with an optional input, not yet rendered."""

    instruction: str
    input: str = ""


Prompt = str | Instruction | tuple[Message, ...]


@dataclass(frozen=True)
class PromptRecord:
    """One row in one form, whatever its columns: the prompt before rendering and its responses.

    ``references`` is empty where the row has none; ``blank_reference`` says that it had one of
    white space only.
    """

    where: str
    prompt: Prompt
    references: tuple[str, ...]
    blank_reference: bool

    @property
    def question(self) -> str:
        """What the user asks, without any template: for showing, not for tokenising."""
        if isinstance(self.prompt, str):
            return self.prompt
        if isinstance(self.prompt, Instruction):
            return f"{self.prompt.instruction}\n{self.prompt.input}".strip()
        asked = [turn["content"] for turn in self.prompt if turn["role"] == "user"]
        return asked[-1] if asked else ""


@dataclass(frozen=True)
class SourceColumns:
    """The columns of a source: ``roles`` maps a role to its column; ``ignored`` lists the rest."""

    format: Format
    roles: dict[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def detect_format(columns: tuple[str, ...], wanted: Format, source: str) -> Format:
    """The format of a source.

    Args:
        columns: its column names.
        wanted: ``data.format``; ``auto`` takes the only format that fits.
        source: named in messages.

    Returns:
        ``messages``, ``prompt-completion`` or ``instruction``.

    Raises:
        DataError: none or several formats fit, or the wanted one lacks its columns.
    """
    found = f"found the columns {', '.join(columns) or '(none)'}"
    fits: list[Format] = [wanted] if wanted != "auto" else _fitting(columns)
    if len(fits) > 1:
        raise DataError(
            f"{source}: expected the columns of one format; {found}, which fit "
            f"{' and '.join(fits)}. Understood: {FORMATS_UNDERSTOOD}. "
            f"Choose with data.format: {fits[0]} (or {', '.join(fits[1:])})."
        )
    if not fits or fits[0] == "text":
        only_text = "text" in columns or wanted == "text"
        raise DataError(
            f"{source}: expected prompts; {found}. Understood: {FORMATS_UNDERSTOOD}. "
            + (
                "Plain text serves the language-model stream only: name it in data.lm_text."
                if only_text
                else "Rename the columns to one of these formats."
            )
        )
    required = REQUIRED[fits[0]]
    if required not in columns:
        raise DataError(
            f"{source}: expected a column {required} for data.format: {fits[0]}; {found}. "
            f"Understood: {FORMATS_UNDERSTOOD}. Rename the column or change data.format."
        )
    return fits[0]


def choose_columns(
    columns: tuple[str, ...], format: Format, template: Template, source: str
) -> SourceColumns:
    """Give each column its role.

    A ready-made ``prompt`` next to ``instruction`` (as in MiniLLM's files) is used only under the
    ``plain`` template, where it takes the place of instruction and input.

    Args:
        columns: column names of the source.
        format: as returned by ``detect_format``.
        template: the resolved template, not ``auto``.
        source: named in messages.

    Returns:
        The columns.

    Raises:
        DataError: two columns have the same role.
    """
    wanted = ROLES[format]
    notes: list[str] = []
    if format == "instruction" and "prompt" in columns:
        if template == "plain":
            wanted = ("prompt", "output", "references")
            notes.append("`prompt` is used as it stands, in place of instruction and input")
        else:
            notes.append(
                "`prompt` is ignored: the prompt is rendered from instruction and input "
                "(data.template: plain would use it)"
            )
    roles: dict[str, str] = {}
    for role in wanted:
        present = [name for name in ALIASES[role] if name in columns]
        if len(present) > 1:
            raise DataError(
                f"{source}: expected one column for the {role}; found {' and '.join(present)}. "
                "Remove or rename one of them."
            )
        if present:
            roles[role] = present[0]
    ignored = tuple(name for name in columns if name not in roles.values())
    return SourceColumns(format, roles, ignored, tuple(notes))


def parse_record(row: SourceRow, columns: SourceColumns) -> PromptRecord:
    """Read one row.

    Args:
        row: the row.
        columns: the roles of its columns.

    Returns:
        The record; its prompt is empty text where the row has none.

    Raises:
        DataError: a value has the wrong type, with the place, the column and the type found.
    """
    values = {role: row.values.get(column) for role, column in columns.roles.items()}
    prompt: Prompt
    responses: list[str] = []
    if "messages" in columns.roles:
        prompt, answer = _split_messages(_messages(values["messages"], row, columns, "messages"))
        responses = [answer] if answer is not None else []
    elif "instruction" in columns.roles:
        prompt = Instruction(
            _text(values["instruction"], row, columns, "instruction"),
            _text(values.get("input"), row, columns, "input"),
        )
    else:
        prompt = _prompt(values["prompt"], row, columns)
    for role in ("completion", "output", "references"):
        if role in columns.roles:
            responses += _responses(values[role], row, columns, role)
    kept = tuple(dict.fromkeys(text for text in responses if text.strip()))
    return PromptRecord(row.where, prompt, kept, blank_reference=bool(responses) and not kept)


def _fitting(columns: tuple[str, ...]) -> list[Format]:
    fits: list[Format] = []
    if "messages" in columns:
        fits.append("messages")
    # A lone `prompt` next to `instruction` is a rendering of it, not a second format.
    if "completion" in columns or ("prompt" in columns and "instruction" not in columns):
        fits.append("prompt-completion")
    if "instruction" in columns:
        fits.append("instruction")
    # `text` next to another format is a rendering too, and cannot be used for prompts.
    return fits or (["text"] if "text" in columns else [])


def _split_messages(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str | None]:
    """Prompt turns and the response, which is ``None`` unless the last turn is an assistant's."""
    if messages and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"]
    return messages, None


def _prompt(value: Any, row: SourceRow, columns: SourceColumns) -> Prompt:
    if not isinstance(value, list):
        return _text(value, row, columns, "prompt")
    turns = _messages(value, row, columns, "prompt")
    if turns and turns[-1]["role"] == "assistant":
        raise _wrong(row, columns, "prompt", "turns that end on a user turn", "an assistant turn")
    return turns


def _responses(value: Any, row: SourceRow, columns: SourceColumns, role: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    expected = "text or a list of texts"
    if not isinstance(value, list):
        raise _wrong(row, columns, role, expected, type_name(value))
    if role == "completion" and value and isinstance(value[0], dict):
        turns = _messages(value, row, columns, role)
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            found = f"turns of {', '.join(turn['role'] for turn in turns)}"
            raise _wrong(row, columns, role, "one assistant turn", found)
        return [turns[0]["content"]]
    for item in value:
        if not isinstance(item, str):
            raise _wrong(row, columns, role, expected, f"a list with {type_name(item)}")
    return value


def _text(value: Any, row: SourceRow, columns: SourceColumns, role: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(row, columns, role, "text", type_name(value))
    return value


def _messages(value: Any, row: SourceRow, columns: SourceColumns, role: str) -> tuple[Message, ...]:
    if value is None:
        return ()
    expected = "a list of objects with the texts role and content"
    if not isinstance(value, list):
        raise _wrong(row, columns, role, expected, type_name(value))
    turns: list[Message] = []
    for index, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise _wrong(row, columns, role, expected, f"{type_name(turn)} as turn {index}")
        for key in ("role", "content"):
            if not isinstance(turn.get(key), str):
                found = f"{type_name(turn.get(key))} as {key} of turn {index}"
                raise _wrong(row, columns, role, expected, found)
        # Parquet fills the fields of absent keys with null; templates test for presence.
        turns.append({key: item for key, item in turn.items() if item is not None})
    return tuple(turns)


def _wrong(
    row: SourceRow, columns: SourceColumns, role: str, expected: str, found: str
) -> DataError:
    return DataError(
        f"{row.where}, column {columns.roles[role]}: expected {expected}; found {found}. "
        "Correct the row, or rename the column if it is not meant for this."
    )
