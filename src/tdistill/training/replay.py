"""The student's own responses: kept for a while, with the teacher's evidence of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from tdistill.core import truncate
from tdistill.evidence.evidence import (
    Evidence,
    EvidenceSource,
    concatenate,
    evidence_from_tensors,
    take_responses,
)
from tdistill.evidence.rows import ROW_SOURCES, Row, row_key
from tdistill.models.generation import seed_of
from tdistill.training.config import ReplayConfig

_MIB = 1 << 20


@dataclass(frozen=True, eq=False)
class Entry:
    """A response of the student, the teacher's evidence of it, and the update it was made at."""

    row: Row
    evidence: Evidence
    born: int


class ReplayBuffer:
    """Responses of the student; the oldest go first, and none is used beyond its age limit.

    Args:
        config: capacity and age limit.
    """

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self.entries: list[Entry] = []
        self.sampled_tokens = 0  # of all responses ever taken in
        self._by_key: dict[bytes, Entry] = {}

    def __len__(self) -> int:
        """Responses held."""
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the evidence held."""
        tensors = (t for e in self.entries for t in e.evidence.named_tensors().values())
        return sum(t.numel() * t.element_size() for t in tensors)

    def add(self, entries: Iterable[Entry], *, update: int) -> None:
        """Take in new responses, and let go of those that are too old or too many."""
        held = len(self.entries)
        kept = [*self.entries, *entries]
        self.sampled_tokens += sum(len(e.row.response_ids) for e in kept[held:])
        oldest = update - self.config.max_age
        self._keep([e for e in kept if e.born >= oldest][-self.config.capacity :])

    def draw(self, count: int, *, update: int, seed: str) -> list[Row]:
        """Responses that are not too old, each once as long as there are enough.

        Args:
            count: how many.
            update: the present one, to judge their age by.
            seed: decides which; the same buffer and seed give the same rows.
        """
        fresh = [e for e in self.entries if update - e.born <= self.config.max_age]
        order: list[int] = []
        generator = torch.Generator().manual_seed(seed_of(seed))
        while fresh and len(order) < count:
            order += torch.randperm(len(fresh), generator=generator).tolist()
        return [fresh[i].row for i in order[:count]]

    def evidence(self, row: Row) -> Evidence:
        """The teacher's evidence of one of the responses held."""
        return self._by_key[row_key(row)].evidence

    def report(self, update: int) -> dict[str, float]:
        """Rows, memory and mean age in updates, for the log."""
        ages = [update - e.born for e in self.entries]
        return {
            "replay_rows": float(len(self)),
            "replay_mib": round(self.nbytes / _MIB, 3),
            "replay_age": sum(ages) / max(len(ages), 1),
        }

    def save(self, path: Path) -> None:
        """Write everything as one safetensors file."""
        tensors = _entries_to_tensors(self.entries)
        save_file(tensors | {"sampled_tokens": torch.tensor(self.sampled_tokens)}, path)

    def load(self, path: Path) -> None:
        """Read what :meth:`save` wrote, in the same order."""
        tensors = load_file(path)
        self.sampled_tokens = int(tensors["sampled_tokens"])
        self._keep(_entries_from_tensors(tensors))

    def _keep(self, entries: list[Entry]) -> None:
        self.entries = entries
        self._by_key = {row_key(e.row): e for e in entries}


@dataclass(frozen=True)
class BufferedSource:
    """Evidence of the student's responses from the buffer, and of all others from a source."""

    buffer: ReplayBuffer
    source: EvidenceSource

    def evidence(self, rows: Sequence[Row], *, set_top_p: float | None = None) -> Evidence:
        """See :class:`tdistill.evidence.evidence.EvidenceSource`."""
        own = ("student", "mixed")
        parts = [
            self.buffer.evidence(row) if row.source in own else self.source.evidence([row])
            for row in rows
        ]
        found = concatenate(parts)
        return found if set_top_p is None else found.cut(truncate(found.sets, set_top_p))


def entries_to_bytes(entries: Sequence[Entry]) -> bytes:
    """Responses with their evidence, to be sent to another process."""
    return to_bytes(_entries_to_tensors(entries))


def entries_from_bytes(sent: bytes) -> list[Entry]:
    """What :func:`entries_to_bytes` was called on, bit for bit."""
    return _entries_from_tensors(from_bytes(sent))


def _entries_to_tensors(entries: Sequence[Entry]) -> dict[str, Tensor]:
    tensors = _rows_to_tensors([e.row for e in entries])
    tensors["born"] = torch.tensor([e.born for e in entries], dtype=torch.long)
    if entries:
        tensors |= concatenate([e.evidence for e in entries]).named_tensors()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _entries_from_tensors(tensors: dict[str, Tensor]) -> list[Entry]:
    rows, born = _rows_from_tensors(tensors), tensors["born"].tolist()
    parts: list[Evidence] = []
    if rows:
        lengths = [len(row.response_ids) for row in rows]
        parts = take_responses(evidence_from_tensors(tensors), lengths)
    return [Entry(*item) for item in zip(rows, parts, born, strict=True)]


def _rows_to_tensors(rows: Sequence[Row]) -> dict[str, Tensor]:
    def flat(values: Iterable[Sequence[float]], dtype: torch.dtype) -> Tensor:
        return torch.tensor([v for row in values for v in row], dtype=dtype)

    return {
        "prompt_lengths": torch.tensor([len(r.prompt_ids) for r in rows], dtype=torch.long),
        "response_lengths": torch.tensor([len(r.response_ids) for r in rows], dtype=torch.long),
        "prompt_ids": flat((r.prompt_ids for r in rows), torch.long),
        "response_ids": flat((r.response_ids for r in rows), torch.long),
        # float64: the resumed run must hold the very same numbers.
        "behaviour": flat((r.behaviour for r in rows), torch.float64),
        "ended": torch.tensor([r.ended for r in rows], dtype=torch.bool),
        "source": torch.tensor([ROW_SOURCES.index(r.source) for r in rows], dtype=torch.long),
    }


def _rows_from_tensors(tensors: dict[str, Tensor]) -> list[Row]:
    prompts = tensors["prompt_ids"].split(tensors["prompt_lengths"].tolist())
    lengths = tensors["response_lengths"].tolist()
    responses = tensors["response_ids"].split(lengths)
    behaviour = tensors["behaviour"].split(lengths)
    ended, source = tensors["ended"].tolist(), tensors["source"].tolist()
    return [
        Row(tuple(p.tolist()), tuple(r.tolist()), e, ROW_SOURCES[s], tuple(b.tolist()))
        for p, r, b, e, s in zip(prompts, responses, behaviour, ended, source, strict=True)
    ]
