"""The IQ-Learn family on the teacher's top-p set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Card, StepLoss, Views
from tdistill.training.objectives.temporal_difference import TemporalDifference

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.core.phi import Phi
    from tdistill.evidence.batch import Batch

__all__ = ["BellmanDistill", "IQLearn"]

PhiName = Literal["identity", "chi-square", "hellinger", "kl", "jensen-shannon", "total-variation"]


@dataclass(frozen=True)
class IQLearn(TemporalDifference):
    """IQ-Learn (4.2): ``-phi(r) + V(s) - discount V(s')`` with ``r = Q(s,a) - discount V(s')``.

    On expert steps the discounted values cancel: ``[V(s) - Q(s,a)] + [r - phi(r)]``. The first
    bracket clones the teacher; the second holds all temporal-difference content. At the last step
    of a cut response, whose V(s') is unknown, it is left out (residual) or the response ends there
    (semi, target).

    ``second_term`` says where ``V(s) - discount V(s')`` is averaged:

    - ``expert``: over the expert rows, as above;
    - ``online``: over the steps of all rows, the student's too; phi stays a mean over the expert
      steps, which there is ``[V - Q] + [r - w phi(r)]``, w all steps over expert steps. On a
      student step phi pulls the reward as well, ``V - discount V' + [r - phi(r)]``, as the authors'
      ``regularize`` does, or the values of states that no expert row visits would fall without
      bound. So no step can: V - Q is at least 0, ``V - discount V'`` at least r, and phi falls
      with a slope of 2 or more far below 0 (hence no identity);
    - ``initial``: telescoped to V(s_0), over the discounted occupancy of every row (see
      ``core.iq_learn_initial_loss``); equal to ``expert`` with weights gamma^t. The mass off the
      set is then only held down at s_0, also under ``normaliser: vocabulary``.

    The last two need the gradient through V(s'), which alone holds it down. On the student's own
    rows the action is no label. Under ``expert`` and ``initial`` such a step clones by the
    teacher's expectation, ``V(s) - E_T[Q(s,a)]``, whatever ``linear_term`` is, and has no phi. With
    ``linear_term: sampled`` what is cloned is the policy that wrote the rows, the teacher or not.

    The defaults are those of the authors' offline code: sampled actions, chi-square with weight
    1/2, raw outputs as Q, gradients through V(s'). The one exception is the normaliser, which takes
    in the whole vocabulary: the paper has no candidate sets, and with V on the set alone nothing
    holds down the mass off it.
    """

    name: ClassVar[str] = "iq_learn"
    card: ClassVar[Card] = Card(
        family="temporal-difference",
        minimises="-phi(Q - discount V') + V - discount V'",
        optimum="the policy that wrote the rows (else proj_p pi*), up to phi's pull",
        bias="chi-square: about .06/alpha in probability; pi = proj_p pi* phi'(r) (semi)",
        data="teacher responses with sets; second_term: online also student rows",
        cost="K D, and V D with normaliser: vocabulary",
        reference="Garg et al., 2021, arXiv 2106.12142",
    )
    alpha: float = 0.5  # scale of phi; smaller pulls the reward harder towards its centre
    phi: PhiName = "chi-square"
    max_slope: float = 10.0  # of phi far below its centre, where it is continued linearly
    centre: Literal["zero", "teacher"] = "zero"  # where phi pulls the reward to
    linear_term: Literal["sampled", "teacher-expectation"] = "sampled"
    second_term: Literal["expert", "online", "initial"] = "expert"

    def __post_init__(self) -> None:
        """Refuse values out of range, and choices that exclude each other."""
        super().__post_init__()
        check("alpha", self.alpha > 0.0, "above 0", self.alpha)
        check("max_slope", self.max_slope > 1.0, "above 1, phi's slope at 0", self.max_slope)
        online = self.second_term == "online"
        wanted = "above 0 under second_term: online, which averages over the student's rows"
        check("student_share", self.uses_student_rows or not online, wanted, self.student_share)
        through = self.successor == "residual" or self.second_term == "expert"
        wanted = f"residual under second_term: {self.second_term}, or nothing holds V(s') down"
        check("successor", through, wanted, self.successor)
        wanted = "another under second_term: online, where V(s) of student states has no bound"
        check("phi", self.phi != "identity" or not online, wanted, self.phi)
        steep = self.max_slope >= 2.0 or not online
        wanted = "at least 2 under second_term: online, or V(s) of student states has no bound"
        check("max_slope", steep, wanted, self.max_slope)

    @property
    def reads_normaliser(self) -> bool:
        """The teacher's raw Q, round which its reward is, has the log-normaliser in it."""
        return self.centre == "teacher" and self.shift == "raw"

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """The negative of (4.2) per step."""
        links, online = batch.transitions, self.second_term == "online"
        q, q_a = self.q_values(views.student)
        value = core.soft_value(q, batch.sets.offsets)
        next_value = self.next_values(value, views, batch)
        reward = core.implied_reward(q_a, next_value, links.discount)
        first = self.first_value(views.student, value)
        linear = core.iq_learn_linear_term(first, self._label_q(q, q_a, batch))
        scale = views.counts_of(batch).over_source(batch.expert).where(batch.expert, 1.0)
        nonlinear = core.iq_learn_nonlinear_term(
            reward, self._phi(batch), scale if online else 1.0
        ).where(self.reward_steps(batch) & (batch.expert | online), reward.new_zeros(()))
        loss = self._second_term(linear, nonlinear, first, next_value, batch)
        parts = {"linear": linear, "nonlinear": nonlinear, "implied_reward": reward, "value": value}
        return StepLoss(loss, parts)

    def _second_term(
        self, linear: Tensor, nonlinear: Tensor, value: Tensor, after: Tensor, batch: Batch
    ) -> Tensor:
        """The loss for where the second expectation of (4.2) is taken."""
        on_expert = linear + nonlinear
        if self.second_term == "expert":
            return on_expert
        links = batch.transitions
        flow = core.iq_learn_value_term(value, after, links.discount)
        if self.second_term == "online":
            flow = flow.where(links.can_bootstrap, flow.new_zeros(()))
            return on_expert.where(batch.expert, flow + nonlinear)
        occupancy = core.discounted_occupancy(links.has_successor, discount=self.discount)
        first = core.first_steps(links.has_successor)
        loss = core.iq_learn_initial_loss(on_expert, value, flow, occupancy, first)
        return loss.where(batch.expert, on_expert)

    def _label_q(self, q: Tensor, q_a: Tensor, batch: Batch) -> Tensor:
        """Q of the expert's action: the sampled one's, or its expectation under the teacher."""
        policy = core.project(batch.sets.log_probs, batch.sets.offsets)
        expected = core.expectation(q, policy, batch.sets.offsets)
        return q_a.where(batch.expert, expected) if self.linear_term == "sampled" else expected

    def _phi(self, batch: Batch) -> Phi:
        """phi, around what it pulls the reward to: ``r_T + phi(r - r_T)`` with the teacher's."""
        if self.centre == "zero":
            return self._phi_around_zero
        centre = self.teacher_reward(batch)
        return lambda reward: centre + self._phi_around_zero(reward - centre)

    def _phi_around_zero(self, reward: Tensor) -> Tensor:
        if self.phi == "identity":
            return core.identity_phi(reward)
        if self.phi == "chi-square":
            return core.chi_square_phi(reward, alpha=self.alpha)
        bounded = {
            "hellinger": core.hellinger_phi,
            "kl": core.kl_phi,
            "jensen-shannon": core.jensen_shannon_phi,
            "total-variation": core.total_variation_phi,
        }[self.phi]
        return bounded(reward, alpha=self.alpha, max_slope=self.max_slope)


@dataclass(frozen=True)
class BellmanDistill(IQLearn):
    """IQ-Learn with chi-square on the teacher's top-p set, as the choices of method.md, section 4.

    The defaults are what a measured comparison chose (docs/log.md, 2026-11-24). The authors chose
    ``alpha: 0.1, normaliser: set, linear_term: sampled, shift: vocabulary-max, q_min: -10``.
    """

    name: ClassVar[str] = "bellman_distill"
    card: ClassVar[Card] = Card(
        family="temporal-difference",
        minimises="[V - Q] + [r - phi(r)], r = Q - discount V'",
        optimum="proj_p pi* up to phi's pull; sampled: the policy that wrote the rows, so pulled",
        bias="chi-square: about .06/alpha in probability; pi = proj_p pi* phi'(r) (semi)",
        data="teacher responses with sets",
        cost="K D, and V D with normaliser: vocabulary",
        reference="Yu et al., 2025, arXiv 2505.20335; Garg et al., 2021, arXiv 2106.12142",
    )
    alpha: float = 10.0  # strength of chi-square; smaller pulls the reward harder towards 0
    linear_term: Literal["sampled", "teacher-expectation"] = "teacher-expectation"
