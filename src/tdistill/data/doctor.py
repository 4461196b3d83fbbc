"""The data doctor: what was read, what was left out, and what exactly is trained on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tdistill.errors import printable

_PROMPT_CHARACTERS = 600
_RESPONSE_TOKENS = 60


@dataclass(frozen=True)
class ShownRow:
    """One kept row, decoded from its token ids.

    Attributes:
        where: the place it came from.
        prompt: text of the prompt tokens, none of which is trained on.
        prompt_tokens: their number.
        trained: text of each trained token; the last is the end token where the response ends.
        ended: whether it ends.
    """

    where: str
    prompt: str
    prompt_tokens: int
    trained: tuple[str, ...]
    ended: bool


@dataclass(frozen=True)
class DoctorReport:
    """What became of the rows of one source.

    Attributes:
        source: as given.
        format: the format that its columns fit.
        template: the template in use, never ``auto``.
        roles: the column that serves each role.
        ignored: columns that are not used.
        notes: what the reader should know, in sentences.
        end_token: the token that ends a response; ``end_id`` is its id.
        rows_read: rows read, after the limit.
        rows_rendered: examples that these would make, but for empty rows and long prompts.
        rows_answered: those that bring a response.
        rows_kept: those that became examples.
        refused_rows: rows left out, whose prompt the chat template cannot express.
        empty_rows: rows left out, with no prompt (or a blank response where one is needed).
        long_prompts: rows left out, with a prompt of more than ``max_prompt_tokens``.
        endless_rows: kept rows whose response was cut at ``max_response_tokens`` and so is trained
            without end token.
        without_reference: kept rows with no response.
        duplicate_prompts: kept rows whose prompt tokens came before.
        special_in_prompts: kept rows whose own prompt text spells a special token.
        special_in_responses: kept rows whose response spells one.
        faults: rows that the chat template cannot express, or writes otherwise than prompt and
            response, by reason; those it cannot express are not trained on.
        first_faults: the place of the first row of each reason.
        lost: rows that lose a field which the template does not write, by field.
        boundary_checked: rows whose prompt and response tokens were compared with the chat
            template's own tokens of the whole conversation: all with a response, but for those
            that spell a special token.
        boundary_equal: those that were equal, token for token, the end token included.
        boundary_think: others, equal but for reasoning, or an empty think block, that the template
            writes into its generation prompts alone.
        closed_blocks: responses without reasoning, before which the think block that the prompt
            opens is closed.
        trained_turns: which turns of the assistant are trained on.
        earlier_turns: turns of the assistant that are prompt, not trained on.
        prompt_tokens_mean: tokens a prompt; ``prompt_tokens_max`` is the longest.
        response_tokens_mean: tokens a response; ``response_tokens_max`` is the longest.
        sample: one kept row.
    """

    source: str
    format: str
    template: str
    roles: dict[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    end_token: str
    end_id: int
    rows_read: int
    rows_rendered: int
    rows_answered: int
    rows_kept: int
    empty_rows: int
    refused_rows: int
    long_prompts: int
    endless_rows: int
    without_reference: int
    duplicate_prompts: int
    special_in_prompts: int
    special_in_responses: int
    faults: dict[str, int]
    first_faults: dict[str, str]
    lost: dict[str, int]
    boundary_checked: int
    boundary_equal: int
    boundary_think: int
    closed_blocks: int
    trained_turns: str
    earlier_turns: int
    prompt_tokens_mean: float
    prompt_tokens_max: int
    response_tokens_mean: float
    response_tokens_max: int
    sample: ShownRow

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """The report for people, in lines of plain text that cannot act on a terminal."""
        used = ", ".join(f"{column} ({role})" for role, column in self.roles.items())
        lines = [
            f"data doctor: {self.source}",
            f"  format      {self.format}; used: {used}; ignored: {', '.join(self.ignored) or '-'}",
            f"  template    {self.template}; a response ends with {self.end_token} "
            f"(id {self.end_id})",
            f"  rows        {self.rows_read} read, {self.rows_kept} kept; left out: "
            f"{self.empty_rows} empty, {self.long_prompts} with too long a prompt"
            + (f", {self.refused_rows} by the template" if self.refused_rows else ""),
            f"  responses   {self.endless_rows} cut, so end-less; "
            f"{self.without_reference} rows without a response",
            f"  prompts     {self.duplicate_prompts} duplicates",
            f"  tokens      prompt {self.prompt_tokens_mean:.0f} on average, at most "
            f"{self.prompt_tokens_max}; response {self.response_tokens_mean:.0f}, at most "
            f"{self.response_tokens_max}",
        ]
        lines += [*self._turn_lines(), *self._boundary_lines()]
        lines += [f"  note        {note}" for note in self.notes]
        return printable("\n".join([*lines, *self._sample_lines()]))

    def _turn_lines(self) -> list[str]:
        if not self.earlier_turns and self.trained_turns == "last":
            return []
        which = {"last": "the last", "all": "all"}[self.trained_turns]
        return [
            f"  turns       {which} of the assistant's trained on; {self.earlier_turns} in prompts "
            "alone (data.trained_turns)"
        ]

    def _boundary_lines(self) -> list[str]:
        lines: list[str] = []
        if self.boundary_checked:
            text = (
                f"  boundary    {self.boundary_equal} of {self.boundary_checked} rows equal to the "
                "chat template's own tokens"
            )
            if self.boundary_think:
                text += f"; {self.boundary_think} equal but for the think block"
            lines.append(text)
        for reason, count in self.faults.items():
            first = self.first_faults[reason]
            lines.append(f"  fault       {count} rows: {reason} (first: {first})")
        for field, count in self.lost.items():
            lines.append(f"  lost        {field} of {count} rows: the template does not write it")
        return lines

    def _sample_lines(self) -> list[str]:
        sample = self.sample
        lines = [
            f"  sample      {sample.where}",
            f"    prompt, {sample.prompt_tokens} tokens, not trained on:",
            *(f"      {line}" for line in _middle_out(sample.prompt).split("\n")),
        ]
        if not sample.trained:
            return [*lines, "    no response"]
        shown = sample.trained
        half = _RESPONSE_TOKENS // 2 - 5
        if len(shown) > _RESPONSE_TOKENS:
            left_out = f"... {len(shown) - 2 * half} tokens ..."
            shown = (*shown[:half], left_out, *shown[-half:])
        end = "with the end token" if sample.ended else "cut, so without the end token"
        # One bracket for each trained token; line feeds are written out to keep them visible.
        marked = "".join(f"[{token}]" for token in shown).replace("\n", "\\n")
        return [
            *lines,
            f"    response, {len(sample.trained)} tokens, each trained on, {end}:",
            f"      {marked}",
        ]


def _middle_out(text: str) -> str:
    if len(text) <= _PROMPT_CHARACTERS:
        return text
    half = _PROMPT_CHARACTERS // 2 - 50
    return f"{text[:half]}\n... {len(text) - 2 * half} characters ...\n{text[-half:]}"
