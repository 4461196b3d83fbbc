"""Cloning with costs to go in the finished student's output layer (9.8)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Card, Folding, StepLoss, Views
from tdistill.training.objectives.cloning import KD
from tdistill.training.objectives.cost_critic import CostCritic

if TYPE_CHECKING:
    from tdistill.evidence.batch import Batch

__all__ = ["ValueFoldedKD"]


@dataclass(frozen=True)
class ValueFoldedKD(CostCritic, KD):
    """:class:`KD`, and when training ends ``pi exp(-w g) / Z`` in place of pi.

    g, the student's divergence from the teacher to go, is learned beside it on the same rows, and
    is linear in the hidden state: so the tilted policy is the same network with other rows in its
    output layer, which every engine serves. Weight 0 is kd itself; a run trains objectives that
    differ in their weight alone once. Tied embeddings are untied.
    """

    name: ClassVar[str] = "value_folded_kd"
    card: ClassVar[Card] = Card(
        family="temporal-difference",
        minimises="KL(T || pi), then pi exp(-w g) / Z; (G - g)^2 by an optimiser of its own",
        optimum="proj_p pi* where the student can be it; else tilted to what it can carry through",
        bias="none where the student can be the teacher: then g = 0",
        data="teacher responses with sets",
        cost="V D and K D, and K D of the critic",
        reference="method.md, section 9, (9.8) and (9.9)",
    )
    set_top_p: float | None = None  # null: all that was captured, as kd
    weight: float = 2.0  # w of the costs to go; chosen on validation prompts, 0 among the choices
    keep_frequencies: bool = False  # (9.9): for free text, where all responses must not be alike
    discount: float = 0.8  # of the cost to go

    def __post_init__(self) -> None:
        """Refuse what is not linear in the hidden state, and the support that reads no sets."""
        super().__post_init__()
        check("weight", self.weight >= 0.0, "at least 0", self.weight)
        linear = self.critic.form != "mlp"
        check("critic.form", linear, "map, low-rank or rows: linear in the hidden state", "mlp")
        check("support", self.support != "vocabulary", "one that reads sets", self.support)

    @property
    def folding(self) -> Folding | None:
        """As the fields say."""
        return Folding(self.weight, self.keep_frequencies) if self.weight else None

    @property
    def unfolded(self) -> ValueFoldedKD:
        """The same with a weight of 0."""
        return replace(self, weight=0.0, keep_frequencies=False)

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """The cloner's loss, and the critic's of the teacher's policy."""
        result = super().loss(views, batch)
        assert views.critic is not None, "the trainer gives a critic where one is needed"
        teacher = core.project(batch.sets.log_probs, batch.sets.offsets)
        cost = self.forward_cost(views.student, batch)
        target, known = self.cost_to_go(views, batch, cost, teacher, cost.new_zeros(cost.shape))
        critic, parts = self.critic_loss(views, target, known & batch.expert)
        excess = core.advantage(views.critic.on_set.detach(), teacher, batch.sets.offsets)
        parts["critic_spread"] = core.spread(excess, teacher, batch.sets.offsets)
        return StepLoss(result.loss, result.parts | parts | {"cost": cost}, critic)
