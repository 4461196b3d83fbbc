"""A prompt with a response to it: what evidence is about, and the address it is found by."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Literal, get_args

from tdistill.checks import check

RowSource = Literal["teacher", "reference", "student", "mixed"]
"""Teacher responses, ground truth, the student's own, sampled from teacher and student mixed."""

ROW_SOURCES: tuple[RowSource, ...] = get_args(RowSource)


@dataclass(frozen=True)
class Row:
    """A prompt and a response to it, as token ids: what evidence is about.

    Attributes:
        prompt_ids: tokens of the prompt, at least one.
        response_ids: tokens of the response, at least one, the end token included where it ended.
        ended: whether the response finished with an end token (false: cut at a length limit).
        source: who wrote the response; no part of what the row is.
        behaviour: log-probability of each token under the policy that wrote it, nats, where known.
        teacher: fingerprint of the teacher whose evidence is meant, where a cache may hold several.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    ended: bool
    source: RowSource = field(default="teacher", compare=False, repr=False)
    behaviour: tuple[float, ...] = field(default=(), compare=False, repr=False)
    teacher: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a row without a state to act in, or without an action."""
        for name in ("prompt_ids", "response_ids"):
            check(name, len(getattr(self, name)) > 0, "at least one token", "none")


def row_key(row: Row) -> bytes:
    """Address of a row: 16 bytes of the SHA-256 of its token ids."""
    prompt, response = (struct.pack(f"<{len(i)}i", *i) for i in (row.prompt_ids, row.response_ids))
    return hashlib.sha256(prompt + b"|" + response).digest()[:16]
