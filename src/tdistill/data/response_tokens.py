"""Tokens of responses: what the template writes, to the token that ends the turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tdistill.data.conversation import Rendered
from tdistill.data.formats import PromptRecord, Response
from tdistill.data.thinking import TAGS
from tdistill.data.tokens import (
    TurnEnd,
    encode_prompts,
    encode_rendered,
    encode_responses,
    end_token_id,
)
from tdistill.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MERGED = "the tokens of prompt and response merge where they meet"
ENDLESS = "the chat template does not end the turn"
SPELT = "reasoning or a tool call spells a special token, which then looks like the template's own"
_TAGS = {tag for pair in TAGS for tag in pair}


@dataclass(frozen=True)
class ResponseTokens:
    """The first response of a row in tokens.

    Attributes:
        ids: with the end token, uncut; empty where there is no response or it cannot be trained on.
        fault: why it is not the template's own text; ``MERGED`` alone leaves it its tokens.
        compared: whether its tokens were compared with the template's own.
        text: what it says, where the record's own text does not: a turn that calls tools, or whose
            reasoning is lost.
    """

    ids: tuple[int, ...] = ()
    fault: str | None = None
    compared: bool = False
    text: str | None = None


def all_text(response: Response) -> str:
    """All that a response says, its reasoning and its tool calls too."""
    if isinstance(response, str):
        return response
    return json.dumps({k: v for k, v in response.items() if k != "role"}, ensure_ascii=False)


@dataclass(frozen=True)
class ResponseTokeniser:
    """Makes tokens of responses, whose turns end in one way."""

    tokenizer: PreTrainedTokenizerBase
    end: TurnEnd

    def apart(self, row: Rendered, prompt_ids: list[int]) -> Rendered:
        """The row, or what is to be taken in its place where tokens of its two parts merge."""
        if row.instead is None:
            return row
        whole = encode_rendered(self.tokenizer, f"{row.prompt}{row.response}")
        return row if whole[: len(prompt_ids)] == prompt_ids else row.instead

    def of_text(
        self, records: Sequence[PromptRecord], rendered: Sequence[Rendered]
    ) -> list[ResponseTokens]:
        """Responses that no chat template wrote.

        Raises:
            DataError: an end token inside one, which the tokenizer cannot read as plain text.
        """
        rows = encode_responses(self.tokenizer, [row.response or "" for row in rendered])
        for record, ids in zip(records, rows, strict=True):
            self._refuse_early_end(ids, record)
        return [
            ResponseTokens() if row.response is None else ResponseTokens((*ids, self.end.id))
            for row, ids in zip(rendered, rows, strict=True)
        ]

    def of_chat(
        self,
        records: Sequence[PromptRecord],
        rendered: Sequence[Rendered],
        prompt_ids: Sequence[list[int]],
    ) -> list[ResponseTokens]:
        """Responses that a chat template wrote: what its tokens go on with after the prompt's.

        Raises:
            DataError: as `of_text` does.
        """
        wholes = [
            "" if row.response is None else f"{row.prompt}{self._trimmed(row.response)}"
            for row in rendered
        ]
        whole_ids = encode_prompts(self.tokenizer, "chat", wholes)
        rows = zip(records, rendered, prompt_ids, whole_ids, strict=True)
        return [self._of_row(*row) for row in rows]

    def _of_row(
        self, record: PromptRecord, row: Rendered, prompt_ids: list[int], whole_ids: list[int]
    ) -> ResponseTokens:
        if row.response is None:
            return ResponseTokens(fault=row.fault)
        response, fault = record.references[0], None
        spelt = self._spells_control(response)
        if spelt:
            ids = self._apart(row, record)
            fault = SPELT if ids is None else None
        elif whole_ids[: len(prompt_ids)] == prompt_ids:
            ids = whole_ids[len(prompt_ids) :]
        else:
            ids, fault = encode_rendered(self.tokenizer, self._trimmed(row.response)), MERGED
        ids = None if ids is None else self._to_the_end(ids)
        if ids is None:
            return ResponseTokens(fault=fault or ENDLESS)
        calls = not isinstance(response, str) and "tool_calls" in response
        other = calls or "reasoning" in row.lost
        text = self.tokenizer.decode(ids, skip_special_tokens=True) if other else None
        said = None if text is None else str(text).strip()
        return ResponseTokens(tuple(ids), fault, compared=not spelt, text=said)

    def _trimmed(self, response: str) -> str:
        return response.removesuffix(self.end.trimmed)

    def _spells_control(self, response: Response) -> bool:
        """Whether it spells a special token, other than those that reasoning stands in."""
        text = all_text(response)
        names = (name for name in self.tokenizer.all_special_tokens if name not in _TAGS)
        return any(name in text for name in names)

    def _apart(self, row: Rendered, record: PromptRecord) -> list[int] | None:
        """Tokens of a response that spells a special token: its own text is read as plain text."""
        text = self._trimmed(row.response or "")
        lead, answer, tail = text.partition(row.answer) if row.answer else (text, "", "")
        if not answer or not isinstance(record.references[0], str):
            return None
        (inside,) = encode_responses(self.tokenizer, [answer])
        self._refuse_early_end(inside, record)
        around = [encode_rendered(self.tokenizer, part) if part else [] for part in (lead, tail)]
        return [*around[0], *inside, *around[1]]

    def _refuse_early_end(self, ids: Sequence[int], record: PromptRecord) -> None:
        if not {self.end.id, end_token_id(self.tokenizer)}.isdisjoint(ids):
            raise DataError(
                f"{record.where}: expected a response without an end token inside; found one that "
                "this tokenizer cannot read as plain text. Remove it from the text."
            )

    def _to_the_end(self, ids: list[int]) -> list[int] | None:
        """The tokens of a turn up to and with the one that ends it; None where nothing ends it."""
        if not self.end.written:
            return [*ids, self.end.id]
        if self.end.id in ids:
            return ids[: ids.index(self.end.id) + 1]
        # A turn that calls a tool may have an end of its own (<|call|>, <|eom_id|>).
        said = (i for i in reversed(range(len(ids))) if not self._is_space(ids[i]))
        last = next(said, None)
        own = last is not None and ids[last] in self.tokenizer.all_special_ids
        return ids[: last + 1] if own and last is not None else None

    def _is_space(self, token: int) -> bool:
        return str(self.tokenizer.decode([token])).isspace()
