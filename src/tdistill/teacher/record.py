"""What goes into a cache."""

from __future__ import annotations

from dataclasses import dataclass

from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row


@dataclass(frozen=True, eq=False)
class Record:
    """A response with its evidence and where it came from (``rollout:0``, ``score``)."""

    row: Row
    evidence: Evidence
    source: str
