"""What is logged of training: means over the steps of a logging interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from tdistill.core import (
    WeightedSum,
    expectation,
    implied_reward,
    masked_sum,
    project,
    set_forward_kl,
    successor,
)
from tdistill.evidence.batch import Batch
from tdistill.evidence.rows import ROW_SOURCES
from tdistill.models.set_scores import SetScores
from tdistill.training.objectives import StepLoss

Pair = tuple[float, float]
"""A sum and its weight, on the host."""

_NEED_SUCCESSOR = (
    "implied_reward",
    "nonlinear",
    "critic_error",
    "critic_return",
)  # mean nothing without V(s')


class Diagnostics:
    """Sums of the quantities of the present logging interval.

    Args:
        by_source: whether rows of several origins are mixed, which are then told apart, too.
    """

    def __init__(self, *, by_source: bool) -> None:
        self.by_source = by_source
        self._sums: dict[str, WeightedSum] = {}

    @torch.no_grad()
    def observe(self, student: SetScores, batch: Batch, result: StepLoss) -> None:
        """Add what there is to know of a batch."""
        blank = 1 - batch.layout.attention_mask.flatten()
        self.add("padding", blank, torch.ones_like(blank, dtype=torch.bool))
        self._add_by_source("step_loss", result.loss, batch.trained, batch)
        if not batch.has_sets:
            return
        self.add("out_of_set", batch.out_of_set.float(), torch.ones_like(batch.trained))
        known = batch.trained & batch.transitions.can_bootstrap
        for name, values in {**_on_sets(student, batch), **result.parts}.items():
            counted = known if name in _NEED_SUCCESSOR else batch.trained
            self._add_by_source(name, values, counted, batch)
            if name.startswith("critic_"):  # what its explained variance is made of
                self.add(f"{name}_squared", values.square(), counted)
        leak, steps = student.pick(batch.own).leak()
        self._add_by_source("leak", leak, batch.trained, batch, steps)

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add the values that are marked to a sum."""
        self._sum(name, masked_sum(values.detach().float(), mask))

    def _sum(self, name: str, pair: WeightedSum) -> None:
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def _add_by_source(
        self, name: str, values: Tensor, counted: Tensor, batch: Batch, steps: Tensor | None = None
    ) -> None:
        """Add values of some steps (None: all) to their sum, and to that of whoever wrote them."""
        at = slice(None) if steps is None else steps
        self.add(name, values, counted[at])
        if not self.by_source:
            return
        mask, source = counted[at], batch.source[batch.row][at]
        none = torch.zeros(len(ROW_SOURCES), device=values.device)
        kept = torch.where(mask, values.detach().float(), none[0])
        totals, weights = none.index_add(0, source, kept), none.index_add(0, source, mask.float())
        for origin, total, weight in zip(ROW_SOURCES, totals, weights, strict=True):
            self._sum(f"{name}.{origin}", WeightedSum(total, weight))

    def take(
        self, gather: Callable[[dict[str, Pair]], Sequence[dict[str, Pair]]]
    ) -> tuple[dict[str, float], float]:
        """The means, and the number of trained steps; the sums begin anew.

        Args:
            gather: what all processes of the run have; one may have rows of an origin that others
                have not.
        """
        names, sums = zip(*sorted(self._sums.items()), strict=True)
        pairs = torch.stack([torch.stack([s.total, s.weight]) for s in sums]).tolist()
        own = {name: (total, weight) for name, (total, weight) in zip(names, pairs, strict=True)}
        self._sums, totals = {}, dict[str, Pair]()
        for name, pair in chain.from_iterable(part.items() for part in gather(own)):
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + pair[0], before[1] + pair[1])
        means = {name: total / weight for name, (total, weight) in totals.items() if weight}
        if "critic_return" in means:
            left, all_of_it = (
                means[f"{name}_squared"] - means[name] ** 2
                for name in ("critic_error", "critic_return")
            )
            means["critic_explained_variance"] = 1.0 - left / max(all_of_it, 1e-12)
        return means, totals["step_loss"][1]


def _on_sets(student: SetScores, batch: Batch) -> dict[str, Tensor]:
    """What an objective sees, on its sets; how near the student is, on the teacher's own."""
    links, value = batch.transitions, student.set_value
    following = successor(value, links.has_successor)
    own = student.pick(batch.own)
    log_policy = project(own.on_set, own.sets.offsets)
    return {
        "value": value,
        "implied_reward": implied_reward(student.action, following, links.discount),
        "entropy": -expectation(log_policy, log_policy, own.sets.offsets),
        "set_kl": set_forward_kl(own.sets.log_probs, log_policy, own.sets.offsets),
    }
