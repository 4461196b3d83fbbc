"""A batch: rows laid end to end, the teacher's evidence at their steps, masks and discounts."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.core import TopPSets
from tdistill.evidence.rows import ROW_SOURCES
from tdistill.models.layout import Layout
from tdistill.models.prefix_sharing import PrefixSharing


@dataclass(frozen=True, eq=False)
class Batch:
    """N responses of T steps in all, with M set members; the one kind that objectives consume.

    Attributes:
        input_ids: prompts and responses (the last action is predicted, never read).
        attention_mask: 1 on tokens, 0 on padding.
        row: response of each step.
        position: place in its row of ``input_ids`` whose output predicts the action of each step.
        action: the response's token at each step.
        discount: gamma, 0 where the response ended (method.md, section 1).
        has_successor: whether the next flat step is the successor state.
        can_bootstrap: false at the last step of a cut response.
        trained: steps that count; false where an out-of-set action was dropped.
        out_of_set: steps whose action was not in the teacher's set.
        set_ids: token of every member.
        set_log_probs: the teacher's log-probability of every member, over the vocabulary, nats.
        set_offsets: rows of the sets.
        teacher_log_normaliser: log-sum-exp of the teacher's logits, nats.
        teacher_action_log_prob: the teacher's log-probability of each action, nats.
        behaviour_log_prob: log-probability of each action under the policy that wrote it; the
            teacher's where that is unknown.
        source: who wrote each response, an index into ``ROW_SOURCES``.
        text_ids: equal-length chunks of plain text for the language-model stream, or None.
        tail_ids: distinct tokens sampled from the teacher off its whole captured sets, or None.
        tail_log_probs: the teacher's log-probabilities of them, over the vocabulary, nats.
        tail_counts: how often each was drawn.
        tail_offsets: rows of the tail tokens.
        laid_row: row of ``input_ids`` that each step is read in; None where each response has its
            own, in order. With it, see :class:`tdistill.models.layout.PrefixSharing`:
        position_ids: position of each token in its sequence, or None.
        segment: prompt or response of each token, or None.
        prompt: segment of the prompt that each token continues, or None.
    """

    input_ids: Int[Tensor, "B L"]
    attention_mask: Int[Tensor, "B L"]
    row: Int[Tensor, " T"]
    position: Int[Tensor, " T"]
    action: Int[Tensor, " T"]
    discount: Float[Tensor, " T"]
    has_successor: Bool[Tensor, " T"]
    can_bootstrap: Bool[Tensor, " T"]
    trained: Bool[Tensor, " T"]
    out_of_set: Bool[Tensor, " T"]
    set_ids: Int[Tensor, " M"]
    set_log_probs: Float[Tensor, " M"]
    set_offsets: Int[Tensor, " T+1"]
    teacher_log_normaliser: Float[Tensor, " T"]
    teacher_action_log_prob: Float[Tensor, " T"]
    behaviour_log_prob: Float[Tensor, " T"]
    source: Int[Tensor, " N"]
    text_ids: Int[Tensor, "N C"] | None = None
    tail_ids: Int[Tensor, " J"] | None = None
    tail_log_probs: Float[Tensor, " J"] | None = None
    tail_counts: Int[Tensor, " J"] | None = None
    tail_offsets: Int[Tensor, " T+1"] | None = None
    laid_row: Int[Tensor, " T"] | None = None
    position_ids: Int[Tensor, "B L"] | None = None
    segment: Int[Tensor, "B L"] | None = None
    prompt: Int[Tensor, "B L"] | None = None

    @property
    def layout(self) -> Layout:
        """Where tokens and steps lie: what :func:`tdistill.models.scores.step_scores` reads."""
        row, sharing = self.row, None
        if self.laid_row is not None:
            assert self.position_ids is not None
            assert self.segment is not None
            assert self.prompt is not None
            row, sharing = (
                self.laid_row,
                PrefixSharing(self.position_ids, self.segment, self.prompt),
            )
        return Layout(self.input_ids, self.attention_mask, row, self.position, sharing)

    @property
    def sets(self) -> TopPSets:
        """The teacher's candidate sets, inserted actions included."""
        return TopPSets(self.set_ids, self.set_log_probs, self.set_offsets)

    @property
    def has_sets(self) -> bool:
        """Whether there is teacher evidence at all."""
        return self.set_ids.numel() > 0

    @property
    def inserted(self) -> Bool[Tensor, " M"]:
        """Members that are not of the teacher's set: actions inserted after it."""
        last = self.set_offsets[1:] - 1
        at = last[self.out_of_set]
        marks = torch.zeros_like(self.set_ids, dtype=torch.bool)
        marks[at] = self.set_ids[at] == self.action[self.out_of_set]  # else it was not inserted
        return marks

    @property
    def expert(self) -> Bool[Tensor, " T"]:
        """Steps of rows that the student is to imitate: not written by the student."""
        return self.source[self.row] < ROW_SOURCES.index("student")

    def tensors(self) -> dict[str, Tensor]:
        """The fields as a dictionary, as data loaders and trainers pass batches around."""
        items = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor for name, tensor in items.items() if tensor is not None}
