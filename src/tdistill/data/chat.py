"""A tokenizer's chat template, with everything that its rendering depends on."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tdistill.data.config import DataConfig
from tdistill.data.messages import Message
from tdistill.data.program_limits import limited
from tdistill.data.readers import MAX_LINE_BYTES
from tdistill.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Templates ask `strftime_now(format)` for the date. Variables of a template must be plain data, so
# the clock is a macro before the template: it looks up the formats that stand in the template, and
# replaces the directives of any other.
_CLOCK = (
    "{%- macro strftime_now(format) -%}"
    "{%- if format in tdistill_dates -%}{{- tdistill_dates[format] -}}{%- else -%}"
    "{%- set written = namespace(text=format) -%}"
    "{%- for directive, text in tdistill_clock.items() -%}"
    "{%- set written.text = written.text.replace(directive, text) -%}"
    "{%- endfor -%}{{- written.text -}}{%- endif -%}{%- endmacro %}\n"
)
_FORMATS = re.compile(r"""(["'])((?:(?!\1)[^\n])*%(?:(?!\1)[^\n])*)\1""")
_LONGEST_RENDERING = 5.0  # seconds; templates of strangers may loop in loops
_MOST_MEMORY = 1024  # MiB, of one rendering
_DIRECTIVES = "aAwdbBhmyYHIpPMSfjUWcxXGuVszZ"


class TemplateRefusal(DataError):
    """A chat template does not take the turns of a row; ``reason`` is what it says."""

    def __init__(self, where: str, turns: Sequence[Message], reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"{where}: expected turns that the chat template accepts; found turns of "
            f"{', '.join(turn['role'] for turn in turns)} ({reason}). "
            "Change the row, or set data.system to null if the template takes no system message."
        )


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template that renders the same turns alike, today and tomorrow.

    Attributes:
        tokenizer: whose template it is.
        name: which of several; None: the default.
        variables: what the template is given beside turns and tools.
        clock: the moment that it is told when it asks for the date.
        in_parts: whether it reads texts as lists of parts alone, as those of models that see do.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    clock: datetime = field(default_factory=datetime.now)
    in_parts: bool = False

    def source(self, tools: Sequence[Message] = ()) -> str:
        """The template's text; one of several may be for rows with tools."""
        return self.tokenizer.get_chat_template(self.name, list(tools) or None)

    def render(
        self,
        turns: Sequence[Message],
        tools: Sequence[Message] = (),
        *,
        prompt: bool,
        where: str = "data.template",
    ) -> str:
        """The text of a conversation.

        Args:
            turns: at least one.
            tools: JSON schemas of the row.
            prompt: whether the assistant is to speak next.
            where: the row, for messages.

        Returns:
            The text as the template writes it.

        Raises:
            TemplateRefusal: the template raises an error, of whatever kind.
            DataError: it does not end, or takes or writes too much.
        """
        text, dates = _clocked(self.source(tools), self.clock)
        roles = {} if "developer" in text else {"developer": "system"}
        told = [{**turn, "role": roles.get(turn["role"], turn["role"])} for turn in turns]
        if self.in_parts:
            told = [{**turn, "content": _as_parts(turn.get("content", ""))} for turn in told]
        try:
            with limited(_LONGEST_RENDERING, _MOST_MEMORY):
                written = self.tokenizer.apply_chat_template(
                    told,
                    tools=list(tools) or None,
                    chat_template=text,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    **dates,
                    **self.variables,
                )
        except (TimeoutError, MemoryError) as error:
            raise _runaway(where, str(error)) from error
        # A template is a program of someone else's: anything may be raised in it.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "") or "an error without a text"
            raise TemplateRefusal(where, turns, reason[:200]) from error
        if len(written) > MAX_LINE_BYTES:  # which no row has, and a tokenizer might not survive
            raise _runaway(where, f"it wrote {len(written):,} characters")
        return str(written)


def _runaway(where: str, found: str) -> DataError:
    """No fault of a row: the next one would take as long."""
    return DataError(
        f"{where}: expected a chat template that writes at most {MAX_LINE_BYTES:,} characters "
        f"within {_LONGEST_RENDERING:g} seconds and {_MOST_MEMORY} MiB; found one that does not: "
        f"{found}. Take another template, by data.template_name or in the model's folder."
    )


@functools.lru_cache(maxsize=16)
def _clocked(template: str, clock: datetime) -> tuple[str, dict[str, dict[str, str]]]:
    """A template that is told a moment, and the variables that it is told it by."""
    if "strftime_now" not in template:
        return template, {}
    directives, dates = _directives(clock), {}
    for _, format in _FORMATS.findall(template):
        dates[format] = functools.reduce(lambda t, d: t.replace(*d), directives.items(), format)
    # A line of its own, since white space is trimmed by lines.
    return _CLOCK + template, {"tdistill_clock": directives, "tdistill_dates": dates}


def _directives(clock: datetime) -> dict[str, str]:
    """The text of each directive of ``strftime``, the longer spellings first."""
    plain = {f"%{letter}": clock.strftime(f"%{letter}") for letter in _DIRECTIVES}
    bare = {f"%-{key[1]}": text.lstrip("0") or "0" for key, text in plain.items()}
    composed = {"%F": "%Y-%m-%d", "%T": "%H:%M:%S", "%D": "%m/%d/%y", "%R": "%H:%M"}
    composed["%e"] = f"{clock.day:2d}"
    # A doubled % is put aside, so that it begins no directive.
    return {"%%": "\0"} | composed | bare | plain | {"\0": "%"}


def chat_template_of(
    tokenizer: PreTrainedTokenizerBase, config: DataConfig, clock: datetime | None = None
) -> ChatTemplate:
    """The chat template that a recipe asks for.

    Args:
        tokenizer: with a chat template.
        config: ``template_name``, ``template_kwargs`` and ``clock``.
        clock: of the run, where the configuration names none; None: now.

    Raises:
        DataError: there is no template of that name, none is the default, or the template reads no
            variable of a given name.
    """
    name = _name(tokenizer, config.template_name)
    told = clock if config.clock is None else datetime.fromisoformat(config.clock)
    chat = ChatTemplate(tokenizer, name, dict(config.template_kwargs), told or datetime.now())
    given: Any = tokenizer.chat_template
    texts = list(given.values() if isinstance(given, dict) else [given])
    if not all(isinstance(text, str) for text in texts):
        raise DataError(
            "data.template: expected chat templates that are texts; found another kind. Correct "
            "chat_template in tokenizer_config.json."
        )
    words = set(re.findall(r"\w+", " ".join(texts)))
    for variable in config.template_kwargs:
        if variable not in words:
            near = difflib.get_close_matches(variable, sorted(words), n=1, cutoff=0.7)
            raise DataError(
                f"data.template_kwargs: expected variables that the chat template reads; found "
                f"{variable}, which it does not{f' (nearest: {near[0]})' if near else ''}. "
                "Correct the name or remove it."
            )
    return replace(chat, in_parts=_reads_parts_alone(chat))


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _reads_parts_alone(chat: ChatTemplate) -> bool:
    """Whether a text is left out, and written where it is a list of parts."""
    turns = [{"role": "user", "content": "question"}]

    def writes(template: ChatTemplate) -> bool:
        try:
            return "question" in template.render(turns, prompt=False)
        except TemplateRefusal:
            return False

    return not writes(chat) and writes(replace(chat, in_parts=True))


def _name(tokenizer: PreTrainedTokenizerBase, wanted: str | None) -> str | None:
    templates: Any = tokenizer.chat_template
    if not isinstance(templates, dict):
        if wanted is not None:
            raise DataError(
                f"data.template_name: expected null, since the tokenizer has one chat template; "
                f"found {wanted}. Remove it."
            )
        return None
    names = sorted(templates)
    if wanted is None and "default" not in templates:
        raise DataError(
            f"data.template_name: expected the name of one of the tokenizer's chat templates "
            f"({', '.join(names)}), none of which is the default; found null. Name one."
        )
    if wanted is not None and wanted not in templates:
        raise DataError(
            f"data.template_name: expected one of {', '.join(names)}; found {wanted}. "
            "Use one of these names."
        )
    return wanted
