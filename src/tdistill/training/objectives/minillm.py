"""MiniLLM: reverse KL between whole responses, by policy gradient on the student's own samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Card, Objective, StepLoss, Views

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.evidence.batch import Batch

__all__ = ["MiniLLM"]


@dataclass(frozen=True)
class MiniLLM(Objective):
    """Minimises ``KL(pi || pi*)`` over responses, its gradient split at every step in two.

    ``- w_t [R_{t+1} grad log pi(a_t|s_t)  +  grad sum_a pi(a|s_t) log pi*(a|s_t) / pi(a|s_t)]``:
    the return after the step is estimated from the sample, the step itself is exact over the
    vocabulary. ``w_t = pi(a_t|s_t) / behaviour(a_t|s_t)``, the weight of samples that the teacher
    helped to choose (``teacher_mix``) or that are some updates old, is per token, as in the paper.

    The paper's equations are the default; its code differs: the return takes in the step itself, is
    discounted by 0.95, whitened over the batch, and the exact part is not weighted. Steps of rows
    that the student did not write have no part in the loss; the language-model stream (``lm_text``)
    is the paper's L_PT. A cut response ends where it was cut.
    """

    name: ClassVar[str] = "minillm"
    card: ClassVar[Card] = Card(
        family="online",
        minimises="KL(pi || pi*) over whole responses",
        optimum="pi*; with length_norm, a pull of long responses that is not exactly it",
        bias="none; length_norm and the clip bring some",
        data="the student's own responses, and the live teacher",
        cost="2 V D, and the teacher's and the student's sampling",
        reference="Gu et al., 2024, arXiv 2306.08543",
    )
    needs_student_rows: ClassVar[bool] = True

    student_share: float = 1.0
    teacher_mix: float = 0.2  # the paper's alpha
    discount: float = 1.0  # of the return; the authors' code: 0.95
    length_norm: bool = True  # divide the return by the steps that it sums
    clip_ratio: float | None = 0.2  # of the policy ratio, as in PPO; null: no clip
    single_step: bool = True  # exact gradient of the step itself; false: from the sample too

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        clip = self.clip_ratio
        check("clip_ratio", clip is None or 0.0 < clip < 1.0, "in (0, 1) or null", clip)
        wanted = "insert or refuse: the gradient needs every action that was sampled"
        check("out_of_set", self.out_of_set != "drop", wanted, self.out_of_set)

    @property
    def needs_live_teacher(self) -> bool:
        """The exact part sums over the vocabulary."""
        return True

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """A loss whose gradient is the estimate above; its value is the per-step divergence."""
        student = views.student
        assert views.teacher is not None, "the trainer gives a live teacher where it is needed"
        log_prob = student.action - student.log_normaliser
        log_ratio = log_prob - batch.behaviour_log_prob
        reward = (batch.teacher_action_log_prob - log_prob).detach()
        returns = self._returns(reward, batch)
        exact = student.divergence_from(views.teacher, core.reverse_kl_terms)
        policy = core.clipped_policy_loss(log_ratio, returns, clip=self.clip_ratio)
        loss = policy + (log_ratio.detach().exp() * exact if self.single_step else 0.0)
        loss = loss.where(~batch.expert, loss.new_zeros(()))
        return StepLoss(loss, {"reverse_kl": exact, "return": returns})

    def _returns(self, reward: Tensor, batch: Batch) -> Tensor:
        """The return after each step, or from it on, divided by the number of its steps."""
        total = core.discounted_sum(reward, batch.transitions.has_successor, discount=self.discount)
        steps = core.discounted_sum(reward.new_ones(reward.shape), batch.transitions.has_successor)
        if self.single_step:  # the step itself has an exact part of its own
            total = core.successor(total, batch.transitions.has_successor) * self.discount
            steps = steps - 1
        return total / steps.clamp(min=1) if self.length_norm else total
