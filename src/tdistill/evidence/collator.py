"""From rows to a batch: layout, evidence, and what happens to an action outside its set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.core import TopPSets, offsets_of, split_at, transitions, truncate_by_gain
from tdistill.errors import DataError
from tdistill.evidence.batch import Batch
from tdistill.evidence.evidence import Evidence, EvidenceSource
from tdistill.evidence.rows import ROW_SOURCES, Row
from tdistill.models.layout import Layout, cut, lay_out
from tdistill.models.member_places import member_places

OutOfSet = Literal["insert", "drop", "refuse"]
PaddingSide = Literal["right", "left"]
Item = tuple[int, Row]
"""A row with its index in the data, which decides the text it is paired with."""


@dataclass(frozen=True)
class Collator:
    """Makes batches from rows.

    Attributes:
        source: the teacher's evidence; None for objectives that need none.
        pad_id: fills the rest of the rows; no mask depends on it.
        set_top_p: mass of the candidate sets; None takes what was captured.
        min_gain: ends a set where one more member adds less log mass, nats; None does not.
        out_of_set: what happens to a step whose action is not in its set.
        discount: gamma.
        padding_side: either gives the same loss.
        text: chunks of plain text, chosen by the index of the row.
        share_prefix: whether the responses of a prompt may share its tokens; the same loss.
        tokens_per_forward: most tokens of a batch, padding included, that :meth:`batches` makes.
    """

    source: EvidenceSource | None
    pad_id: int
    set_top_p: float | None = None
    min_gain: float | None = None
    out_of_set: OutOfSet = "insert"
    discount: float = 0.99
    padding_side: PaddingSide = "right"
    text: Sequence[tuple[int, ...]] = ()
    share_prefix: bool = False
    tokens_per_forward: int | None = None

    def batches(self, items: Sequence[Item]) -> list[Batch]:
        """The items in batches of like lengths and at most ``tokens_per_forward`` tokens each."""
        rows = [row for _, row in items]
        parts = cut(rows, self.tokens_per_forward, share=self.share_prefix)
        return [self([items[i] for i in part]) for part in parts]

    def __call__(self, items: Sequence[Item]) -> Batch:
        """The batch of these rows.

        Raises:
            DataError: for an action outside its set under ``refuse``.
        """
        rows = [row for _, row in items]
        action = torch.tensor([a for r in rows for a in r.response_ids])
        lengths = torch.tensor([len(r.response_ids) for r in rows])
        ended = torch.tensor([r.ended for r in rows])
        evidence = self._evidence(rows, len(action))
        outside = outside_set(evidence.sets, action) & (evidence.sets.sizes > 0)
        dropped = outside if self.out_of_set == "drop" else torch.zeros_like(outside)
        links = transitions(lengths, ended, discount=self.discount)
        batch = Batch(
            layout=self._layout(rows),
            row=torch.arange(len(rows)).repeat_interleave(lengths),
            action=action,
            transitions=split_at(links, dropped),
            trained=~dropped,
            out_of_set=outside,
            sets=self._admit(evidence, action, outside),
            teacher_log_normaliser=evidence.log_normaliser,
            teacher_action_log_prob=evidence.action_log_prob,
            behaviour_log_prob=behaviour_log_prob(rows, evidence.action_log_prob),
            source=torch.tensor([ROW_SOURCES.index(r.source) for r in rows]),
            tail=evidence.tail,
            text_ids=self._text([index for index, _ in items]),
        )
        places = member_places(batch.sets, action, batch.inserted)
        return replace(batch, places=places)

    def _layout(self, rows: Sequence[Row]) -> Layout:
        return lay_out(
            rows,
            self.pad_id,
            padding_side=self.padding_side,
            share=self.share_prefix,
            most_tokens=self.tokens_per_forward,
        )

    def _text(self, indices: Sequence[int]) -> Tensor | None:
        if not self.text:
            return None
        return torch.tensor([self.text[i % len(self.text)] for i in indices])

    def _evidence(self, rows: Sequence[Row], steps: int) -> Evidence:
        if self.source is not None:
            found = self.source.evidence(rows, set_top_p=self.set_top_p)
            if self.min_gain is None:
                return found
            return found.cut(truncate_by_gain(found.sets, self.min_gain))
        none = torch.zeros(0, dtype=torch.long)
        empty = TopPSets(none, none.float(), torch.zeros(steps + 1, dtype=torch.long))
        return Evidence(empty, torch.zeros(steps), torch.zeros(steps))

    def _admit(self, evidence: Evidence, action: Tensor, outside: Tensor) -> TopPSets:
        if self.out_of_set == "refuse" and outside.any():
            step = int(outside.nonzero()[0])
            raise DataError(
                f"expected every response token in the teacher's set, found {int(outside.sum())} "
                f"of {len(action)} outside in this batch (first: token {int(action[step])} at step "
                f"{step}); set out_of_set to insert or drop, or raise set_top_p"
            )
        if self.out_of_set != "insert" or not outside.any():
            return evidence.sets
        return insert_actions(evidence.sets, action, evidence.action_log_prob, outside)


def behaviour_log_prob(rows: Sequence[Row], teacher: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Log-probabilities under the policies that wrote the rows, else the teacher's.

    Example:
        >>> rows = [Row((1,), (2,), True), Row((1,), (3,), True, "student", (-0.5,))]
        >>> behaviour_log_prob(rows, torch.tensor([-1.0, -2.0])).tolist()
        [-1.0, -0.5]
    """
    parts = teacher.split([len(row.response_ids) for row in rows])
    known = [torch.tensor(row.behaviour, dtype=teacher.dtype) for row in rows]
    return torch.cat([k if len(k) else part for k, part in zip(known, parts, strict=True)])


def outside_set(sets: TopPSets, action: Int[Tensor, " T"]) -> Bool[Tensor, " T"]:
    """Steps whose action is not a member of their set.

    Example:
        >>> sets = TopPSets(torch.tensor([4, 7]), torch.zeros(2), torch.tensor([0, 1, 2]))
        >>> outside_set(sets, torch.tensor([4, 5])).tolist()
        [False, True]
    """
    hits = (sets.ids == action[sets.step]).long()
    return torch.zeros_like(action).index_add(0, sets.step, hits) == 0


def insert_actions(
    sets: TopPSets,
    action: Int[Tensor, " T"],
    action_log_prob: Float[Tensor, " T"],
    where: Bool[Tensor, " T"],
) -> TopPSets:
    """Sets with the action as one more, last member at the steps where it was outside.

    Example:
        >>> sets = TopPSets(torch.tensor([4, 7]), torch.zeros(2), torch.tensor([0, 1, 2]))
        >>> outside = torch.tensor([False, True])
        >>> insert_actions(sets, torch.tensor([4, 5]), torch.zeros(2), outside).row(1)[0].tolist()
        [7, 5]
    """
    step = torch.cat([sets.step, where.nonzero().squeeze(1)])
    order = step.argsort(stable=True)
    return TopPSets(
        torch.cat([sets.ids, action[where]])[order],
        torch.cat([sets.log_probs, action_log_prob[where]])[order],
        offsets_of(sets.sizes + where.long()),
    )
