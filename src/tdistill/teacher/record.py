"""What goes into a cache, and its address."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from tdistill.teacher.evidence import Evidence, Row


@dataclass(frozen=True, eq=False)
class Record:
    """A response with its evidence and where it came from (``rollout:0``, ``score``)."""

    row: Row
    evidence: Evidence
    source: str


def row_key(row: Row) -> bytes:
    """Address of a row: 16 bytes of the SHA-256 of its token ids."""
    prompt, response = (struct.pack(f"<{len(i)}i", *i) for i in (row.prompt_ids, row.response_ids))
    return hashlib.sha256(prompt + b"|" + response).digest()[:16]
