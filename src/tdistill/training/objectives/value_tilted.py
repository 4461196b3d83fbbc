"""Cloning of a teacher that is tilted towards what this student can carry through (9.6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Card, StepLoss, Views
from tdistill.training.objectives.cloning import KD
from tdistill.training.objectives.cost_critic import CostCritic

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.evidence.batch import Batch

__all__ = ["ValueTilt", "ValueTiltedKD"]


@dataclass(frozen=True)
class ValueTilt(CostCritic):
    """Any cloner of the sets, its teacher T replaced by ``q(a|s) = T(a|s) exp(-beta g(s,a)) / Z``.

    To be named before the cloner among the bases of a class. g is the student's divergence from the
    teacher to go, learned on the teacher's rows; the teacher's mass on the set stays as it is.
    """

    beta: float = 1.0  # strength of the tilt; 0 is the cloner itself
    beta_start: float | None = None  # strength at the first update, linearly to beta; null: beta
    cost: Literal["forward-kl", "reverse-kl", "own-loss"] = "forward-kl"  # of a step
    bootstrap: Literal["tilted", "teacher"] = "tilted"  # the policy that goes on after a step
    # token: less its token's mean over updates; frequency: tokens keep the teacher's frequencies
    centre: Literal["none", "token", "frequency"] = "frequency"
    discount: float = 0.6  # of the cost to go; long horizons drown what a student can choose

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        for name in ("beta", "beta_start"):
            beta = getattr(self, name)
            check(name, beta is None or beta >= 0.0, "at least 0", beta)

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """The cloner's loss to the tilted teacher, and the critic's."""
        assert views.critic is not None, "the trainer gives a critic where one is needed"
        sets, offsets = batch.sets, batch.sets.offsets
        teacher = core.project(sets.log_probs, offsets)
        excess = core.advantage(views.critic.on_set.detach(), teacher, offsets)
        price = self._price(views, sets.ids)
        tilted = core.tilt(teacher - price, excess, offsets, strength=self.strength(views))
        moved = core.segment_sum(core.forward_kl_terms(teacher, tilted), offsets)
        tilted = tilted.detach()
        mass = core.log_set_mass(sets.log_probs, offsets)[sets.step]
        result = super().loss(views, replace(batch, sets=replace(sets, log_probs=tilted + mass)))
        going_on = tilted if self.bootstrap == "tilted" else teacher
        cost = self._cost(views, batch)
        taken = (going_on - teacher).where(sets.ids == batch.action[sets.step], 0.0)
        log_ratio = core.segment_sum(taken, offsets)
        target, known = self.cost_to_go(views, batch, cost, going_on, log_ratio)
        critic, parts = self.critic_loss(views, target, known & batch.expert)
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        if self.centre == "frequency":
            critic = critic + moved.where(batch.expert, 0.0)
        if self.centre == "token":
            size = views.student.scores.vocabulary_size
            sums["token_price"] = core.token_sums(excess, teacher.exp(), sets.ids, size)
        parts["cost"] = cost
        parts["tilt_kl"] = core.segment_sum(core.forward_kl_terms(tilted, teacher), offsets)
        parts["critic_spread"] = core.spread(excess, teacher, offsets)
        return StepLoss(result.loss, result.parts | parts, critic, sums)

    def strength(self, views: Views) -> float:
        """beta at the present update."""
        if views.update < self.critic_updates:
            return 0.0
        start = self.beta if self.beta_start is None else self.beta_start
        done = (views.update - self.critic_updates) / max(
            1, views.updates - 1 - self.critic_updates
        )
        return start + (self.beta - start) * min(1.0, done)

    def _price(self, views: Views, ids: Tensor) -> Tensor | float:
        """The price of the members' tokens whatever the state [M], nats.

        Under ``frequency`` it is lambda of (9.7), with the gradient of ``KL(T || q)``.
        """
        if self.centre == "frequency":
            assert views.price is not None, "the trainer gives prices where there is a critic"
            return views.price[ids]
        own = views.means.get("token_price") if self.centre == "token" else None
        return 0.0 if own is None else -self.strength(views) * own[ids]

    def _cost(self, views: Views, batch: Batch) -> Tensor:
        """c(s) of every step [T], nats."""
        view = views.student
        if self.cost == "own-loss":
            return core.cross_entropy(view.log_normaliser, view.action)
        if self.cost == "forward-kl":
            return self.forward_cost(view, batch)
        return self.reverse_cost(view, batch)


@dataclass(frozen=True)
class ValueTiltedKD(ValueTilt, KD):
    """Forward KL to the teacher tilted by the cost to go: no rollouts, and the time of kd.

    Among the tokens that the teacher accepts it prefers those after which this student can carry
    on. Where the student can be the teacher, g is 0 and it is :class:`KD`.
    """

    name: ClassVar[str] = "value_tilted_kd"
    card: ClassVar[Card] = Card(
        family="temporal-difference",
        minimises="KL(q || pi), q = T exp(-beta g) / Z; (G - g)^2 by an optimiser of its own",
        optimum="proj_p pi* where the student can be it; else tilted to what it can carry through",
        bias="none where the student can be the teacher: then g = 0",
        data="teacher responses with sets",
        cost="V D and K D, and K D of the critic",
        reference="method.md, section 9, (9.6) and (9.7)",
    )
    set_top_p: float | None = 0.8  # mass of the candidate sets; null takes all that was captured

    def __post_init__(self) -> None:
        """Refuse the support that reads no sets."""
        super().__post_init__()
        wanted = "set, set-and-tail or projected: it is the sets that are tilted"
        check("support", self.support != "vocabulary", wanted, self.support)
