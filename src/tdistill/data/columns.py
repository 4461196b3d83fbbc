"""Which columns hold the prompt and the response: decided once per source, refused when unclear."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tdistill.data.config import Format, Template
from tdistill.errors import DataError, excerpt

_MOST_NAMED = 20  # columns in a message
# The names of each role in a format: the first group that a source has any of counts, and two names
# of that group are refused.
Names = tuple[tuple[str, ...], ...]
_SHARED: dict[str, Names] = {
    "references": (("references", "outputs"),),
    "system": (("system", "system_prompt"),),
    "tools": (("tools", "functions"),),
}
ROLES: dict[str, dict[str, Names]] = {
    "messages": {"messages": (("messages",), ("conversations", "conversation")), **_SHARED},
    "prompt-completion": {
        "prompt": (("prompt",),),
        "completion": (("completion",), ("response", "answer", "output", "chosen")),
        **_SHARED,
    },
    "instruction": {
        "instruction": (("instruction",), ("question",)),
        "input": (("input", "context"),),
        "output": (("output", "response"), ("completion", "answer", "chosen")),
        **_SHARED,
    },
}
REQUIRED = {"messages": "messages", "prompt-completion": "prompt", "instruction": "instruction"}
RESPONSE_ROLES = ("completion", "output", "references")
FORMATS_UNDERSTOOD = (
    "messages: messages or conversations; prompt-completion: prompt, completion or response; "
    "instruction: instruction or question, input or context, output or response or answer; "
    "each with optional references, system and tools; text: text (for data.lm_text only)"
)
_TOGETHER = [  # the names of each role, whatever their group
    {name for group in groups for name in group}
    for names in ROLES.values()
    for groups in names.values()
]


@dataclass(frozen=True)
class SourceColumns:
    """The columns of a source: ``roles`` maps a role to its column; ``ignored`` lists the rest."""

    format: Format
    roles: dict[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def named_columns(
    columns: tuple[str, ...], mapping: Mapping[str, str], source: str
) -> dict[str, str]:
    """The columns of a source by the names that they are known by.

    Args:
        columns: its column names.
        mapping: ``data.columns``, from a known name to a column.
        source: named in messages.

    Returns:
        Each known name with its column; a mapped column is known by its new name alone, which no
        other column has then. A source without the mapped column may have one that needs none, as
        where training and test files differ.

    Raises:
        DataError: a mapped name is none that is understood, or its column is not there.
    """
    twice = [name for name, n in Counter(mapping.values()).items() if n > 1]
    if twice:
        raise DataError(
            f"data.columns: expected a column for each name; found {twice[0]} for several. "
            "Name another, or leave out what there is no column for."
        )
    given: dict[str, str] = {}
    known = sorted(set().union(*_TOGETHER))
    for name, column in mapping.items():
        if name not in known:
            raise DataError(
                f"data.columns: expected names among {', '.join(known)}; found {name}"
                f"{_near(name, known)}. Write it as {{prompt: COLUMN, response: COLUMN}}."
            )
        if column in columns:
            given[name] = column
        elif not any(name in role and not role.isdisjoint(columns) for role in _TOGETHER):
            raise DataError(
                f"{source}: expected the column {column} that data.columns names for {name}; found "
                f"the columns {_named(columns)}{_near(column, columns)}. Correct it."
            )
    taken = set(given.values())
    own = {name: name for name in columns if name not in taken and name not in given}
    return own | given


def _named(columns: Iterable[str]) -> str:
    """Names of columns, which are a stranger's: some of them, none of them long."""
    names = [excerpt(name, 60) for name in columns]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return (", ".join(names[:_MOST_NAMED]) or "(none)") + more


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (nearest: {near[0]})" if near else ""


def detect_format(columns: Mapping[str, str], wanted: Format, source: str) -> Format:
    """The format of a source.

    Args:
        columns: as `named_columns` gives them.
        wanted: ``data.format``; ``auto`` takes the only format that fits.
        source: named in messages.

    Returns:
        ``messages``, ``prompt-completion`` or ``instruction``.

    Raises:
        DataError: none or several formats fit, or the wanted one lacks its columns.
    """
    found = f"found the columns {_named(columns.values())}"
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
                else "Say which are which: data.columns: {prompt: COLUMN, response: COLUMN}."
            )
        )
    required = REQUIRED[fits[0]]
    if not _present(columns, fits[0], required):
        raise DataError(
            f"{source}: expected a column {required} for data.format: {fits[0]}; {found}. "
            f"Understood: {FORMATS_UNDERSTOOD}. Rename the column, name it in data.columns, or "
            "change data.format."
        )
    return fits[0]


def choose_columns(
    columns: Mapping[str, str], format: Format, template: Template, source: str
) -> SourceColumns:
    """Give each column its role.

    A ready-made ``prompt`` next to ``instruction`` (as in MiniLLM's files) is used only under the
    ``plain`` template, where it takes the place of instruction and input.

    Args:
        columns: as `named_columns` gives them.
        format: as returned by ``detect_format``.
        template: the resolved template, not ``auto``.
        source: named in messages.

    Returns:
        The columns.

    Raises:
        DataError: two columns have the same role.
    """
    wanted = dict(ROLES[format])
    notes: list[str] = []
    if format == "instruction" and "prompt" in columns:
        if template == "plain":
            wanted = {"prompt": (("prompt",),), **wanted}
            del wanted["instruction"], wanted["input"]
            notes.append("`prompt` is used as it stands, in place of instruction and input")
        else:
            notes.append(
                "`prompt` is ignored: the prompt is rendered from instruction and input "
                "(data.template: plain would use it)"
            )
    roles: dict[str, str] = {}
    for role, groups in wanted.items():
        present = next(filter(None, (_among(group, columns) for group in groups)), [])
        if len(present) > 1:
            raise DataError(
                f"{source}: expected one column for the {role}; found {' and '.join(present)}. "
                f"Name one (data.columns: {{{role}: {present[0]}}}), or remove the others."
            )
        if present:
            roles[role] = columns[present[0]]
    ignored = tuple(column for column in columns.values() if column not in roles.values())
    return SourceColumns(format, roles, ignored, tuple(notes))


def _among(names: tuple[str, ...], columns: Mapping[str, str]) -> list[str]:
    return [name for name in names if name in columns]


def _present(columns: Mapping[str, str], format: Format, role: str) -> bool:
    return any(_among(group, columns) for group in ROLES[format][role])


def _fitting(columns: Mapping[str, str]) -> list[Format]:
    fits: list[Format] = []
    if _present(columns, "messages", "messages"):
        fits.append("messages")
    instruction = _present(columns, "instruction", "instruction")
    # A lone `prompt` next to `instruction` is a rendering of it, not a second format.
    if ("prompt" in columns or "completion" in columns) and not instruction:
        fits.append("prompt-completion")
    if instruction:
        fits.append("instruction")
    # `text` next to another format is a rendering too, and cannot be used for prompts.
    return fits or (["text"] if "text" in columns else [])
