"""What a step of teacher evidence takes on disk, how fast it is read, and what rounding changes.

Functions of a suite; each takes the teacher's logits at the steps of some responses.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdistill.core import TopPSets, log_set_mass, top_p_sets, truncate_by_gain
from tdistill.teacher.cache import Cache, CacheWriter
from tdistill.teacher.evidence import Evidence, Row, take_responses
from tdistill.teacher.grid import round_log_probs, round_normaliser
from tdistill.teacher.layout import member_bytes
from tdistill.teacher.manifest import CacheIdentity
from tdistill.teacher.record import Record


@dataclass(frozen=True)
class Teacher:
    """Responses, and the teacher's float32 log-probabilities and normaliser at their steps."""

    rows: Sequence[Row]
    log_probs: Tensor
    log_normaliser: Tensor

    @property
    def actions(self) -> Tensor:
        """The response's token at every step."""
        return torch.tensor([token for row in self.rows for token in row.response_ids])

    def sets(self, p: float, cap: int | None) -> TopPSets:
        """Top-p sets, log-probabilities not rounded."""
        return top_p_sets(self.log_probs, p, max_size=cap)

    def evidence(self, sets: TopPSets) -> Evidence:
        """Evidence with these sets, not rounded."""
        action = self.log_probs.gather(1, self.actions[:, None]).squeeze(1)
        return Evidence(sets, self.log_normaliser, action)


def teacher_of(rows: Sequence[Row], logits: Tensor) -> Teacher:
    """From logits [T, V]."""
    log_normaliser = logits.float().logsumexp(-1)
    return Teacher(rows, logits.float() - log_normaliser[:, None], log_normaliser)


def stored(evidence: Evidence) -> Evidence:
    """As the cache keeps it."""
    sets = evidence.sets
    kept = TopPSets(sets.ids, round_log_probs(sets.log_probs), sets.offsets)
    normaliser = round_normaliser(evidence.log_normaliser)
    return Evidence(kept, normaliser, round_log_probs(evidence.action_log_prob))


def as_float16(evidence: Evidence) -> Evidence:
    """As formats 1 and 2 kept it."""
    sets = evidence.sets
    kept = TopPSets(sets.ids, sets.log_probs.half().float(), sets.offsets)
    return Evidence(kept, evidence.log_normaliser, evidence.action_log_prob.half().float())


def other_vocabulary(teacher: Teacher, evidence: Evidence, size: int) -> tuple[list[Row], Evidence]:
    """The same numbers under other token ids, spread over a larger vocabulary."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))

    def moved(tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(order[list(tokens)].tolist())

    rows = [
        replace(r, prompt_ids=moved(r.prompt_ids), response_ids=moved(r.response_ids))
        for r in teacher.rows
    ]
    sets = TopPSets(order[evidence.sets.ids], evidence.sets.log_probs, evidence.sets.offsets)
    return rows, replace(evidence, sets=sets)


def write_cache(folder: Path, rows: Sequence[Row], evidence: Evidence, vocabulary: int) -> Cache:
    """A cache with one shard."""
    identity = CacheIdentity("teacher", "0", "0", vocabulary, 1.0, None)
    parts = take_responses(evidence, [len(row.response_ids) for row in rows])
    with CacheWriter(folder, identity) as writer:
        pairs = zip(rows, parts, strict=True)
        writer.write("all", [Record(row, part, "score") for row, part in pairs])
    return Cache(folder)


def cost(rows: Sequence[Row], evidence: Evidence, vocabulary: int) -> dict[str, float]:
    """Bytes a member, and a step beside them: without prompts, and all there is in the file."""
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(Path(folder), rows, stored(evidence), vocabulary)
        total = sum(shard.bytes for shard in cache.manifest.shards)
        steps = cache.manifest.steps
    members = member_bytes(evidence.sets, vocabulary)
    bits = (vocabulary - 1).bit_length()
    before = [(), *(row.prompt_ids for row in rows)]
    prompts = sum(len(b) for a, b in pairwise(before) if a != b) * bits / 8
    return {
        "mean_size": len(evidence.sets.ids) / steps,
        "mass": float(log_set_mass(evidence.sets.log_probs, evidence.sets.offsets).exp().mean()),
        "bytes_member": members / len(evidence.sets.ids),
        "bytes_step_beside": (total - members - prompts) / steps,
        "bytes_step": (total - prompts) / steps,
        "bytes_step_with_prompts": total / steps,
    }


def rounding(exact: Evidence, kept: Evidence) -> dict[str, float]:
    """Errors in nats: of log-probabilities, of log m, of V = log sum exp Q."""
    offsets = exact.sets.offsets
    masses = [log_set_mass(e.sets.log_probs.double(), offsets) for e in (exact, kept)]
    value = [m + e.log_normaliser for m, e in zip(masses, (exact, kept), strict=True)]

    def both(name: str, error: Tensor) -> dict[str, float]:
        return {
            f"{name}_max": float(error.abs().max()),
            f"{name}_rms": float(error.square().mean().sqrt()),
        }

    return {
        **both("log_prob", kept.sets.log_probs - exact.sets.log_probs),
        **both("log_mass", masses[1] - masses[0]),
        **both("value", value[1] - value[0]),
    }


def rates(cache: Cache, *, batch: int = 64, repeats: int = 9) -> dict[str, float]:
    """Steps, members and random rows decoded a second of processor time of one thread."""
    rows = cache.rows()
    generator = torch.Generator().manual_seed(0)
    picks = [
        [rows[i] for i in torch.randint(len(rows), (batch,), generator=generator).tolist()]
        for _ in range(10)
    ]

    def seconds(work: Callable[[], Any]) -> float:
        found = []
        for _ in range(repeats):
            start = time.process_time()
            work()
            found.append(time.process_time() - start)
        return statistics.median(found)

    whole = seconds(lambda: list(cache.shard_columns()))
    evidence = seconds(lambda: cache.evidence(rows))
    random = seconds(lambda: [cache.evidence(pick) for pick in picks])
    members = sum(shard.members for shard in cache.manifest.shards)
    return {
        "decoded_steps_s": cache.manifest.steps / whole,
        "decoded_members_s": members / whole,
        "evidence_steps_s": cache.manifest.steps / evidence,
        "random_rows_s": 10 * batch / random,
    }


def at_equal_mass(teacher: Teacher, mass: float, vocabulary: int) -> dict[str, float]:
    """The cost of sets cut at one gain in log mass whose mean mass is at least ``mass``."""
    whole = teacher.sets(0.9999, 2048)
    low, high = 1e-7, 0.7
    for _ in range(40):
        middle = (low * high) ** 0.5
        cut = truncate_by_gain(whole, middle)
        enough = float(log_set_mass(cut.log_probs, cut.offsets).exp().mean()) >= mass
        low, high = (middle, high) if enough else (low, middle)
    found = teacher.evidence(truncate_by_gain(whole, low))
    rows, moved = other_vocabulary(teacher, found, vocabulary)
    return {"min_gain": low, **cost(rows, moved, vocabulary)}


def equal_mass_of_one_p(teacher: Teacher, mass: float, cap: int | None, vocabulary: int) -> dict:
    """The same with one p for all states, and a cap."""
    low, high = 0.3, 0.9995
    for _ in range(14):
        middle = (low + high) / 2
        cut = teacher.sets(middle, cap)
        enough = float(log_set_mass(cut.log_probs, cut.offsets).exp().mean()) >= mass
        low, high = (low, middle) if enough else (middle, high)
    rows, moved = other_vocabulary(teacher, teacher.evidence(teacher.sets(high, cap)), vocabulary)
    return {"set_top_p": high, **cost(rows, moved, vocabulary)}


def padded_bytes(sizes: Tensor, *, iteration: int = 512) -> float:
    """Bytes a step where rows are padded to the largest set of an iteration of so many steps.

    A float16 log-probability, 16 bits of the token and its 17th: Megatron-LM's logits saver,
    before its general-purpose compression.
    """
    widest = [int(part.max()) * len(part) for part in sizes.split(iteration)]
    return (2 + 2 + 1 / 8) * sum(widest) / len(sizes)
