"""Where evidence comes from: a cache, or the teacher itself. Both give the same tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tdistill.core import truncate
from tdistill.errors import InvalidValueError
from tdistill.evidence.evidence import Evidence, concatenate, take_steps
from tdistill.evidence.rows import Row, row_key
from tdistill.models.generation import uniforms
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import TOKENS_AT_ONCE, Layout, cut, lay_out
from tdistill.models.score_forms import StepScores
from tdistill.models.scores import HeadMode, step_scores
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.capture import capture
from tdistill.teacher.config import CaptureConfig

_CHUNK = 256


class CachedTeacher:
    """Evidence read from a cache; the teacher need not be in memory."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def evidence(self, rows: Sequence[Row], *, set_top_p: float | None = None) -> Evidence:
        """See :class:`EvidenceSource`."""
        return self.cache.evidence(rows, set_top_p=set_top_p)


class LiveTeacher:
    """Evidence by one forward pass of the teacher, captured exactly as a cache would keep it.

    Sampled tail tokens are drawn anew, equal to those of `tdistill score`, not to a rollout's.

    Args:
        teacher: the model.
        config: captured mass and cap, as for a cache.
        vocabulary_size: tokens that count, if fewer than the teacher's.
        head: how scores are read, see :func:`tdistill.models.scores.step_scores`.
    """

    def __init__(
        self,
        teacher: LanguageModel,
        config: CaptureConfig,
        *,
        vocabulary_size: int | None = None,
        head: HeadMode = "auto",
    ) -> None:
        self.teacher, self.config = teacher, config
        self.head: HeadMode = head
        self.vocabulary_size = vocabulary_size or teacher.vocabulary_size

    @torch.no_grad()
    def scores(self, layout: Layout) -> StepScores:
        """The teacher's scores at the steps of rows as laid out, over its whole vocabulary."""
        return step_scores(
            self.teacher.model,
            layout.to(self.teacher.device),
            vocabulary_size=self.vocabulary_size,
            head=self.head,
        )

    @torch.no_grad()
    def evidence(self, rows: Sequence[Row], *, set_top_p: float | None = None) -> Evidence:
        """See :class:`EvidenceSource`."""
        captured = self.config.captured_top_p
        if set_top_p is not None and set_top_p > captured:
            raise InvalidValueError(
                f"set_top_p: expected at most captured_top_p = {captured}, found {set_top_p}"
            )
        parts = cut(rows, TOKENS_AT_ONCE, share=True)
        if len(parts) == 1:
            found = self._pass(rows)
        else:
            made = [self._pass([rows[i] for i in part]) for part in parts]
            found = _in_order(made, parts, [len(row.response_ids) for row in rows])
        if set_top_p is None:
            return found
        return found.cut(truncate(found.sets, set_top_p))

    def _pass(self, rows: Sequence[Row]) -> Evidence:
        """Evidence of rows that are read together, on the CPU."""
        scores = self.scores(lay_out(rows, self.teacher.pad_id, most_tokens=TOKENS_AT_ONCE))
        actions = torch.tensor([a for row in rows for a in row.response_ids])
        uniform = _tail_uniforms(rows, self.config.tail_samples)
        parts = []
        for start in range(0, len(scores), _CHUNK):
            chosen = actions[start : start + _CHUNK].to(self.teacher.device)
            drawn = None if uniform is None else uniform[start : start + len(chosen)]
            kept = capture(scores.rows(start, start + len(chosen)), self.config, drawn)
            parts.append(kept.evidence(chosen))
        return concatenate(parts).to("cpu")


def _in_order(
    made: Sequence[Evidence], parts: Sequence[Sequence[int]], lengths: Sequence[int]
) -> Evidence:
    """Evidence of rows that were read in parts, in the order of the rows."""
    steps = torch.arange(sum(lengths)).split([lengths[i] for part in parts for i in part])
    where = dict(zip((i for part in parts for i in part), steps, strict=True))
    return take_steps(concatenate(made), torch.cat([where[i] for i in range(len(lengths))]))


def _tail_uniforms(rows: Sequence[Row], each: int) -> Tensor | None:
    """Numbers seeded by each row's address: the same whatever it is scored with, and when."""
    if each == 0:
        return None
    parts = []
    for row in rows:
        seed = torch.tensor(int.from_bytes(row_key(row)[:7], "big"))
        parts.append(uniforms(seed, torch.arange(len(row.response_ids) * each)).view(-1, each))
    return torch.cat(parts)
