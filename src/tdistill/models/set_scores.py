"""A model's scores on sets and at actions; costly parts are computed only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core import (
    TopPSets,
    estimated_log_normaliser,
    sampled_log_normaliser,
    set_membership,
    soft_value,
)
from tdistill.models.member_places import MemberPlaces, member_places
from tdistill.models.negatives import Negatives, Occurrences, draw_negatives
from tdistill.models.score_forms import StepScores


class SetScores:
    """A model's scores at T steps, at whose states there are candidate sets.

    Args:
        scores: the forward pass.
        sets: of the steps; all empty where there is no teacher evidence.
        action: the token that was taken at each step.
        chunk_size: steps whose full logits may exist at once.
        negatives: what stands in for the vocabulary; drawn at every use where None.
        places: of the actions in the sets; None: to be found.
        normalised: steps that are normalised over the vocabulary, ascending; None: all.
        share: of the steps, that those are.
        kept_mib: full logits that are kept for the backward pass, not computed again.
    """

    def __init__(
        self,
        scores: StepScores,
        sets: TopPSets,
        action: Int[Tensor, " T"],
        *,
        chunk_size: int = 128,
        negatives: Negatives | None = None,
        places: MemberPlaces | None = None,
        normalised: Int[Tensor, " S"] | None = None,
        share: float = 1.0,
        kept_mib: int = 0,
    ) -> None:
        self.scores, self.sets, self.chunk_size = scores, sets, chunk_size
        self._action, self._negatives, self._places = action, negatives, places
        self._normalised, self._share, self._kept_mib = normalised, share, kept_mib

    def pick(self, members: Int[Tensor, " S"]) -> SetScores:
        """The same scores on sets of the named members alone, which ascend."""
        if len(members) == len(self.sets.ids):
            return self
        kept = SetScores(
            self.scores,
            self.sets.pick(members),
            self._action,
            chunk_size=self.chunk_size,
            negatives=self._negatives,
            normalised=self._normalised,
            share=self._share,
            kept_mib=self._kept_mib,
        )
        known = vars(self)  # what is computed stays so
        names = ("action", "log_normaliser", "some_log_normalisers")
        vars(kept).update({k: known[k] for k in names if k in known})
        vars(kept)["on_set"] = self.on_set[members]
        return kept

    @property
    def steps(self) -> Int[Tensor, " T"]:
        """The numbers of the steps."""
        return torch.arange(len(self._action), device=self._action.device)

    @cached_property
    def on_set(self) -> Float[Tensor, " M"]:
        """Logits of the set members, nats."""
        return self.scores.at(self.sets.ids, self.sets.step)

    @cached_property
    def action(self) -> Float[Tensor, " T"]:
        """Logits of the actions, nats."""
        action = self._action
        if len(self.sets.ids) == 0:
            return self.scores.at(action, self.steps)
        # Nearly every action is a member of its set, whose scores are there already.
        places = self._places or member_places(self.sets, action)
        known, rest = self.on_set, places.outside
        if len(rest):
            known = torch.cat([known, self.scores.at(action[rest], rest)])
        return known[places.action]

    @cached_property
    def log_normaliser(self) -> Float[Tensor, " T"]:
        """``log sum_V exp z``, exact, by chunks of steps."""
        return self._normaliser_of(self.scores)

    def _normaliser_of(self, scores: StepScores) -> Float[Tensor, " S"]:
        return scores.log_normaliser(chunk_size=self.chunk_size, kept_mib=self._kept_mib)

    @cached_property
    def some_log_normalisers(self) -> Float[Tensor, " S"]:
        """The same at the steps that are normalised, where only some are."""
        assert self._normalised is not None
        return self._normaliser_of(self.scores.select(self._normalised))

    @property
    def loss_normaliser(self) -> Float[Tensor, " T"]:
        """:attr:`log_normaliser`, or its unbiased estimate where only some steps are normalised.

        For losses that are linear in it: any other function of the estimate is biased.
        """
        if self._normalised is None:
            return self.log_normaliser
        return estimated_log_normaliser(
            self.set_value, self.some_log_normalisers, self._normalised, share=self._share
        )

    def sampled_log_normaliser(self, count: int) -> Float[Tensor, " T"]:
        """An estimate of :attr:`log_normaliser` by the given negatives, or by ``count`` new ones.

        The work is that of ``count`` tokens a step, whatever the vocabulary.
        """
        members, offsets, drawn = self.sets.ids, self.sets.offsets, self._negatives
        if drawn is None:
            drawn = draw_negatives(Occurrences.of(members), self.scores.vocabulary_size, count)
        negatives = self.scores.columns(drawn.ids)
        member = set_membership(members, offsets, drawn.ids)
        return sampled_log_normaliser(self.on_set, offsets, negatives, drawn.log_weight, member)

    @cached_property
    def maximum(self) -> Float[Tensor, " T"]:
        """``max_V z``, by chunks of steps."""
        return self.scores.reduce(lambda z: z.amax(-1), chunk_size=self.chunk_size)

    @cached_property
    def set_value(self) -> Float[Tensor, " T"]:
        """``log sum_A exp z`` over the set: V_p (3.2) of the raw logits."""
        return soft_value(self.on_set, self.sets.offsets)

    def divergence_from(
        self, teacher: StepScores, terms: Callable[[Tensor, Tensor], Tensor]
    ) -> Float[Tensor, " T"]:
        """A divergence from the teacher over the full vocabulary, by chunks of steps, nats.

        Args:
            teacher: its scores at the same steps.
            terms: of the divergence, elementwise: see :mod:`tdistill.core.divergences`.
        """

        def divergence(student: Tensor, steps: Tensor) -> Tensor:
            target = teacher.rows(int(steps[0]), int(steps[-1]) + 1).log_softmax(-1)
            return terms(target, student.log_softmax(-1)).sum(-1)

        return self.scores.reduce(divergence, self.steps, chunk_size=self.chunk_size)

    @torch.no_grad()
    def leak(self, *, sample: int = 16) -> tuple[Float[Tensor, " S"], Tensor]:
        """Off-set mass of the model and the steps it was computed at.

        Exact at every step whose full normaliser exists anyway; else at ``sample`` steps, evenly
        spread, whose full logits are computed for it.
        """
        if self._normalised is not None and "some_log_normalisers" in self.__dict__:
            inside = self.set_value[self._normalised] - self.some_log_normalisers
            return 1 - inside.exp(), self._normalised
        steps = self.steps
        if "log_normaliser" in self.__dict__:
            return 1 - (self.set_value - self.log_normaliser).exp(), steps
        steps = steps[:: max(1, len(steps) // sample)]
        full = self.scores.select(steps).log_normaliser(chunk_size=self.chunk_size)
        return 1 - (self.set_value[steps] - full).exp(), steps
