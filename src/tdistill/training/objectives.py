"""The objectives: a closed union of frozen dataclasses, each a few lines over ``tdistill.core``.

Every choice of an objective is a field; where gradients stop is visible here and nowhere else. This
module imports no torch, so that recipes can be read and ``--help`` printed without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from tdistill import core
from tdistill.checks import check, check_mass

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.data.batch import Batch
    from tdistill.scores import StepScores
    from tdistill.training.view import ModelView

RowKind = Literal["references", "teacher"]


@dataclass(frozen=True, eq=False)
class StepLoss:
    """Loss of every step, nats, and the parts of it that are worth logging.

    Attributes:
        loss: per step; the trainer averages it over the trained steps.
        parts: further per-step quantities by name.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """Base of the objectives: what data one needs, and its loss.

    Class attributes:
        name: key in recipes.
        rows: trains on the ground-truth references or on the teacher's responses.
        needs_sets: whether batches must carry the teacher's top-p sets.
        needs_live_teacher: whether the teacher must be in memory (a property where it is a choice).
        target_network: decay of the averaged copy of the student, where one is needed.
    """

    name: ClassVar[str]
    rows: ClassVar[RowKind] = "teacher"
    needs_sets: ClassVar[bool] = True

    set_top_p: float | None = 0.8  # mass of the candidate sets; null takes all that was captured
    out_of_set: Literal["insert", "drop", "refuse"] = "insert"  # an action outside its set
    discount: float = 0.99  # gamma
    lm_weight: float = 1.0  # weight of the language-model stream; used when data.lm_text is given

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.set_top_p is not None:
            check_mass("set_top_p", self.set_top_p)
        check("discount", 0.0 <= self.discount <= 1.0, "a value in [0, 1]", self.discount)
        check("lm_weight", self.lm_weight >= 0.0, "at least 0", self.lm_weight)

    @property
    def needs_live_teacher(self) -> bool:
        """Whether the teacher's full distribution is needed at every step."""
        return False

    @property
    def target_network(self) -> float | None:
        """Decay of the averaged copy of the student that gives V(s'); None: there is none."""
        return None

    def step_loss(
        self,
        student: ModelView,
        batch: Batch,
        *,
        teacher: StepScores | None = None,
        target: ModelView | None = None,
    ) -> StepLoss:
        """Loss per step.

        Args:
            student: the trained model at the batch.
            batch: rows and evidence.
            teacher: full scores of the live teacher, where the objective needs them.
            target: the averaged copy of the student, where the objective needs it.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SFT(Objective):
    """Cross-entropy on the ground-truth responses; the optimum is the data's distribution."""

    name: ClassVar[str] = "sft"
    rows: ClassVar[RowKind] = "references"
    needs_sets: ClassVar[bool] = False

    def step_loss(
        self,
        student: ModelView,
        batch: Batch,
        *,
        teacher: StepScores | None = None,
        target: ModelView | None = None,
    ) -> StepLoss:
        """``-log pi(a|s)`` over the full vocabulary."""
        return StepLoss(core.cross_entropy(student.log_normaliser, student.action))


@dataclass(frozen=True)
class SeqKD(SFT):
    """Cross-entropy on the teacher's responses (Kim and Rush, 2016): cloning by samples."""

    name: ClassVar[str] = "seqkd"
    rows: ClassVar[RowKind] = "teacher"


@dataclass(frozen=True)
class KD(Objective):
    """Forward KL from the teacher on its responses (Hinton et al., 2015).

    With the cached teacher the target is proj_p of the teacher and the student is normalised over
    the vocabulary, so the optimum is the projected teacher; with the live teacher it is exact.
    """

    name: ClassVar[str] = "kd"
    teacher: Literal["cached", "live"] = "cached"  # live: exact, the teacher stays in memory
    set_top_p: float | None = None  # null: all that was captured

    @property
    def needs_live_teacher(self) -> bool:
        """The live form needs the full distribution."""
        return self.teacher == "live"

    def step_loss(
        self,
        student: ModelView,
        batch: Batch,
        *,
        teacher: StepScores | None = None,
        target: ModelView | None = None,
    ) -> StepLoss:
        """``KL(pi* || pi)``, or ``KL(proj_p pi* || pi)`` from the cache."""
        if self.teacher == "live":
            assert teacher is not None, "the trainer gives a live teacher where it is needed"
            return StepLoss(student.forward_kl_from(teacher))
        log_probs = student.on_set - student.log_normaliser[batch.sets.step]
        return StepLoss(core.set_forward_kl(batch.set_log_probs, log_probs, batch.set_offsets))


@dataclass(frozen=True)
class BellmanDistill(Objective):
    """IQ-Learn on the teacher's top-p set (4.2); every named choice of method.md, section 4.

    Minimises ``[V(s) - Q(s,a)] + [r - phi(r)]`` with ``r = Q(s,a) - discount V_p(s')``. The first
    bracket clones the teacher; the second holds all temporal-difference content and is left out at
    the last step of a cut response, whose V(s') is unknown.

    The defaults are what a measured comparison chose (docs/log.md, 2026-11-24). The authors chose
    ``alpha: 0.1, normaliser: set, linear_term: sampled, shift: vocabulary-max, q_min: -10``.
    """

    name: ClassVar[str] = "bellman_distill"
    alpha: float = 10.0  # strength of chi-square; smaller pulls the reward harder towards 0
    phi: Literal["chi-square", "identity"] = "chi-square"
    normaliser: Literal["set", "vocabulary"] = "vocabulary"  # the first V: over the set, or all
    linear_term: Literal["sampled", "teacher-expectation"] = "teacher-expectation"
    shift: Literal["raw", "set-max", "vocabulary-max", "normalised"] = "raw"
    q_min: float | None = None  # lower clip of Q; null leaves it
    successor: Literal["residual", "semi", "target"] = "residual"  # gradient through V(s')
    target_decay: float = 0.99  # of the averaged copy that gives V(s') under successor: target

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check("alpha", self.alpha > 0.0, "above 0", self.alpha)
        check("target_decay", 0.0 <= self.target_decay < 1.0, "in [0, 1)", self.target_decay)

    @property
    def target_network(self) -> float | None:
        """Only for the target-network successor."""
        return self.target_decay if self.successor == "target" else None

    def step_loss(
        self,
        student: ModelView,
        batch: Batch,
        *,
        teacher: StepScores | None = None,
        target: ModelView | None = None,
    ) -> StepLoss:
        """The negative of (4.2) per step."""
        q, q_a = self.q_values(student)
        value = core.soft_value(q, batch.set_offsets)
        next_value = core.successor(self._next_value(value, target), batch.has_successor)
        reward = core.implied_reward(q_a, next_value, batch.discount)
        linear = core.iq_learn_linear_term(
            value if self.normaliser == "set" else student.log_normaliser - self._shift(student),
            q_a if self.linear_term == "sampled" else self._expected_q(q, batch),
        )
        nonlinear = core.iq_learn_nonlinear_term(reward, self._phi)
        nonlinear = nonlinear.where(batch.can_bootstrap, nonlinear.new_zeros(()))
        parts = {"linear": linear, "nonlinear": nonlinear, "implied_reward": reward, "value": value}
        return StepLoss(linear + nonlinear, parts)

    def q_values(self, view: ModelView) -> tuple[Tensor, Tensor]:
        """Q of the set members [M] and of the actions [T]: logits, shifted and clipped."""
        shift = self._shift(view)
        q = core.clip_q(view.on_set - shift[view.batch.sets.step], lowest=self.q_min)
        return q, core.clip_q(view.action - shift, lowest=self.q_min)

    def _shift(self, view: ModelView) -> Tensor:
        """The constant per state that turns logits into Q."""
        if self.shift == "set-max":
            return core.set_max_shift(view.on_set, view.batch.set_offsets)
        if self.shift == "vocabulary-max":
            return view.maximum
        if self.shift == "normalised":
            return view.log_normaliser
        return view.action.new_zeros(view.action.shape)

    def _next_value(self, value: Tensor, target: ModelView | None) -> Tensor:
        """V_p of every state as a successor: where the gradient stops."""
        if self.successor == "residual":
            return value
        if self.successor == "semi":
            return value.detach()
        assert target is not None, "the trainer gives a target network where it is needed"
        q, _ = self.q_values(target)
        return core.soft_value(q, target.batch.set_offsets).detach()

    def _expected_q(self, q: Tensor, batch: Batch) -> Tensor:
        policy = core.project(batch.set_log_probs, batch.set_offsets)
        return core.expectation(q, policy, batch.set_offsets)

    def _phi(self, reward: Tensor) -> Tensor:
        if self.phi == "identity":
            return core.identity_phi(reward)
        return core.chi_square_phi(reward, alpha=self.alpha)


AnyObjective = SFT | SeqKD | KD | BellmanDistill
