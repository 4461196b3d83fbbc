"""A batch: rows laid end to end, the teacher's evidence at their steps, masks and discounts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.core import TensorGroup, TopPSets, Transitions
from tdistill.evidence.rows import ROW_SOURCES
from tdistill.evidence.tail import Tail
from tdistill.models.layout import Layout
from tdistill.models.member_places import MemberPlaces


class Counts(NamedTuple):
    """What means are taken over: of a batch, or of a whole update, its parts and processes.

    Attributes:
        steps: trained steps.
        expert_steps: those of rows that the student did not write.
        text_tokens: predicted tokens of the language-model stream.
    """

    steps: Tensor
    expert_steps: Tensor
    text_tokens: Tensor

    def over_source(self, expert: Bool[Tensor, " T"]) -> Float[Tensor, " T"]:
        """All steps over those of a step's source: makes a mean over all one over each source.

        Example:
            >>> counts = Counts(torch.tensor(6), torch.tensor(2), torch.tensor(0))
            >>> counts.over_source(torch.tensor([True, False])).tolist()
            [3.0, 1.5]
        """
        own = self.expert_steps.where(expert, self.steps - self.expert_steps)
        return self.steps / own.clamp(min=1)


@dataclass(frozen=True, eq=False)
class Batch(TensorGroup):
    """N responses of T steps in all; the one kind that objectives consume.

    Attributes:
        layout: tokens, and where each step is read among them.
        row: response of each step.
        action: the response's token at each step.
        transitions: discounts, and which steps have a successor.
        trained: steps that count; false where an out-of-set action was dropped.
        out_of_set: steps whose action was not in the teacher's set.
        sets: the teacher's candidate sets, inserted actions included; log-probabilities over the
            vocabulary, nats.
        teacher_log_normaliser: log-sum-exp of the teacher's logits, nats.
        teacher_action_log_prob: the teacher's log-probability of each action, nats.
        behaviour_log_prob: log-probability of each action under the policy that wrote it; the
            teacher's where that is unknown.
        source: who wrote each response, an index into ``ROW_SOURCES``.
        tail: tokens sampled from the teacher off its whole captured sets, or None.
        text_ids: equal-length chunks of plain text for the language-model stream, or None.
        places: of the actions in the sets; None: to be found.
        normalised: steps that are normalised over the vocabulary, ascending; None: all.
    """

    layout: Layout
    row: Int[Tensor, " T"]
    action: Int[Tensor, " T"]
    transitions: Transitions
    trained: Bool[Tensor, " T"]
    out_of_set: Bool[Tensor, " T"]
    sets: TopPSets
    teacher_log_normaliser: Float[Tensor, " T"]
    teacher_action_log_prob: Float[Tensor, " T"]
    behaviour_log_prob: Float[Tensor, " T"]
    source: Int[Tensor, " N"]
    tail: Tail | None = None
    text_ids: Int[Tensor, "N C"] | None = None
    places: MemberPlaces | None = None
    normalised: Int[Tensor, " S"] | None = None

    @property
    def counts(self) -> Counts:
        """What the means of this batch alone are taken over."""
        steps, text = self.trained.sum(), self.text_ids
        targets = steps.new_tensor(0 if text is None else text[:, 1:].numel())
        return Counts(steps, (self.trained & self.expert).sum(), targets)

    @property
    def has_sets(self) -> bool:
        """Whether there is teacher evidence at all."""
        return self.sets.ids.numel() > 0

    @property
    def inserted(self) -> Bool[Tensor, " M"]:
        """Members that are not of the teacher's set: actions inserted after it."""
        members = self.sets.ids
        marks = torch.zeros(len(members) + 1, dtype=torch.bool, device=members.device)
        if not self.has_sets:
            return marks[:-1]
        last = self.sets.offsets[1:] - 1
        added = self.out_of_set & (members[last] == self.action)  # else it was not inserted
        return marks.index_fill(0, torch.where(added, last, len(members)), True)[:-1]

    @property
    def own(self) -> Int[Tensor, " L"]:
        """Members that are of the teacher's set, ascending."""
        return (~self.inserted).nonzero().squeeze(1) if self.places is None else self.places.own

    @property
    def teacher_sets(self) -> TopPSets:
        """The sets as the teacher has them: without inserted actions."""
        return self.sets.pick(self.own)

    @property
    def expert(self) -> Bool[Tensor, " T"]:
        """Steps of rows that the student is to imitate: not written by the student."""
        return self.source[self.row] < ROW_SOURCES.index("student")
