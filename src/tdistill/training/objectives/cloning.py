"""The cloning family: losses between the teacher's and the student's next-token distributions.

Every divergence has one further choice, its ``support``: the outcomes that it compares.

==============  =======================================================  ===========================
support         teacher and student                                      what is free
==============  =======================================================  ===========================
set             both renormalised over the set                           student's mass off the set
set-and-tail    as they are; all mass off the set is one more outcome     the shape of that tail
projected       proj_p of the teacher; the student as it is, its mass    nothing; the optimum is
                off the set is one more outcome, of teacher mass 0       proj_p pi*, not pi*
vocabulary      as they are, every token (the live teacher)              nothing
==============  =======================================================  ===========================

Merging outcomes never raises a divergence, so set-and-tail is a lower bound of vocabulary. The set
holds its inserted actions too (``out_of_set``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Card, Objective, RowKind, StepLoss, Views

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.evidence.batch import Batch
    from tdistill.models.set_scores import SetScores

__all__ = [
    "JSD",
    "KD",
    "SFT",
    "Divergence",
    "ReverseKL",
    "SeqKD",
    "SkewKL",
    "SkewReverseKL",
    "TotalVariation",
]

Support = Literal["set", "set-and-tail", "projected", "vocabulary"]


@dataclass(frozen=True)
class SFT(Objective):
    """Cross-entropy on the ground-truth responses; the optimum is the data's distribution.

    With support ``set`` it is ``-log proj_p pi(a|s)``, blind to the student's mass off the set. The
    student's own actions are no labels: on its rows the teacher's expectation takes their place.
    """

    name: ClassVar[str] = "sft"
    card: ClassVar[Card] = Card(
        family="cloning",
        minimises="-log pi(a|s) on the references; support set: -log proj_p pi(a|s)",
        optimum="the distribution of the references; support set: within the set, its mass free",
        bias="none towards its data, which need not be the teacher's",
        data="references; support set: with the teacher's sets",
        cost="V D; K D with support set",
        reference="-",
    )
    rows: ClassVar[RowKind] = "references"
    support: Literal["set", "vocabulary"] = "vocabulary"  # what pi is normalised over

    @property
    def needs_sets(self) -> bool:
        """Only to normalise over them."""
        return self.support == "set"

    @property
    def linear_in_normaliser(self) -> bool:
        """``log Z - z``; without sets there is nothing to estimate it from."""
        return self.needs_sets

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """``-log pi(a|s)`` over the full vocabulary or over the set."""
        student = views.student
        normaliser = student.set_value if self.support == "set" else student.loss_normaliser
        return StepLoss(core.cross_entropy(normaliser, self._label(student, batch)))

    def _label(self, student: SetScores, batch: Batch) -> Tensor:
        """The logit of the action; on the student's own rows the teacher's expectation of it."""
        if bool(batch.expert.all()):
            return student.action
        policy = core.project(batch.sets.log_probs, batch.sets.offsets)
        expected = core.expectation(student.on_set, policy, batch.sets.offsets)
        return student.action.where(batch.expert, expected)


@dataclass(frozen=True)
class SeqKD(SFT):
    """Cross-entropy on the teacher's responses: cloning by samples."""

    name: ClassVar[str] = "seqkd"
    card: ClassVar[Card] = Card(
        family="cloning",
        minimises="-log pi(a|s) on the teacher's responses; support set: -log proj_p pi(a|s)",
        optimum="the policy that sampled the responses; support set: within the set, its mass free",
        bias="none; one token a state is noise, not bias",
        data="teacher responses; support set: with sets",
        cost="V D; K D with support set",
        reference="Kim and Rush, 2016, arXiv 1606.07947",
    )
    rows: ClassVar[RowKind] = "teacher"


def _divergence_card(
    minimises: str,
    *,
    reference: str,
    optimum: str = "projected: proj_p pi*; set: proj_p pi* within the set, its mass free; else pi*",
) -> Card:
    """The card of a divergence: only these words differ from one to the next."""
    return Card(
        family="cloning",
        minimises=minimises,
        optimum=optimum,
        bias="projected, set: what lies off the set, -log m_p a step; else none",
        data="responses with the teacher's sets; support vocabulary: the live teacher",
        cost="V D; K D with support set; twice V D with support vocabulary",
        reference=reference,
    )


def outcomes(view: SetScores, batch: Batch, support: Support) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of teacher and student over what a support compares, and its rows."""
    offsets, teacher = batch.sets.offsets, batch.sets.log_probs
    if support == "set":
        return core.project(teacher, offsets), core.project(view.on_set, offsets), offsets
    rest = core.log_rest(core.log_set_mass(teacher, offsets))
    if support == "projected":
        teacher, rest = core.project(teacher, offsets), rest.new_full(rest.shape, float("-inf"))
    normaliser = view.loss_normaliser
    student = view.on_set - normaliser[batch.sets.step]
    student_rest = core.log_rest(view.set_value - normaliser)
    with_tail = core.with_rest(student, student_rest, offsets)
    return core.with_rest(teacher, rest, offsets)[0], *with_tail


@dataclass(frozen=True)
class Divergence(Objective):
    """Base of the divergences from the teacher: a subclass gives the terms and, if any, a limit."""

    support: Support = "projected"  # outcomes compared; vocabulary: the teacher stays in memory
    set_top_p: float | None = None  # null: all that was captured

    def __post_init__(self) -> None:
        """Refuse a divergence that is infinite for every student."""
        super().__post_init__()
        finite = self.support != "projected" or not self.infinite_off_support
        wanted = "set, set-and-tail or vocabulary: the projected teacher has no mass off the set, "
        wanted += "which puts every student infinitely far in this divergence"
        check("support", finite, wanted, self.support)

    @property
    def needs_sets(self) -> bool:
        """Unless every token is compared."""
        return self.support != "vocabulary"

    @property
    def needs_live_teacher(self) -> bool:
        """The full vocabulary is not in the cache."""
        return self.support == "vocabulary"

    @property
    def infinite_off_support(self) -> bool:
        """Whether student mass where the teacher has none costs infinitely much."""
        return False

    def terms(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The divergence's terms of log-probabilities: what every subclass defines."""
        raise NotImplementedError

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """The divergence between the two distributions over the outcomes."""
        if self.support == "vocabulary":
            assert views.teacher is not None, "the trainer gives a live teacher where it is needed"
            return StepLoss(views.student.divergence_from(views.teacher, self.terms))
        teacher, student, offsets = outcomes(views.student, batch, self.support)
        return StepLoss(core.segment_sum(self.terms(teacher, student), offsets))


@dataclass(frozen=True)
class KD(Divergence):
    """Forward KL from the teacher: covers all that the teacher may say."""

    name: ClassVar[str] = "kd"
    card: ClassVar[Card] = _divergence_card(
        "KL(pi* || pi) over the support",
        reference="Hinton et al., 2015, arXiv 1503.02531",
    )

    @property
    def linear_in_normaliser(self) -> bool:
        """``sum_A p (log p - z) + log Z``; the tail's own term is a logarithm of what is left."""
        return self.support in ("set", "projected")

    def terms(self, teacher: Tensor, student: Tensor) -> Tensor:
        """``p (log p - log q)``."""
        return core.forward_kl_terms(teacher, student)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """Reverse KL, exact in each state: avoids what the teacher would not say.

    On teacher responses the states are the teacher's, unlike in MiniLLM; a ``student_share`` moves
    them to the student's.
    """

    name: ClassVar[str] = "reverse_kl"
    card: ClassVar[Card] = _divergence_card(
        "KL(pi || pi*) over the support, state by state",
        reference="Gu et al., 2023, arXiv 2306.08543, for reverse KL as such",
        optimum="set-and-tail, vocabulary: pi*; set: proj_p pi* within the set, its mass free",
    )
    support: Support = "set-and-tail"

    @property
    def infinite_off_support(self) -> bool:
        """``q log(q / 0)``."""
        return True

    def terms(self, teacher: Tensor, student: Tensor) -> Tensor:
        """``q (log q - log p)``."""
        return core.reverse_kl_terms(teacher, student)


@dataclass(frozen=True)
class JSD(Divergence):
    """Generalised Jensen-Shannon divergence, from forward KL (beta 0) to reverse KL (beta 1)."""

    name: ClassVar[str] = "jsd"
    card: ClassVar[Card] = _divergence_card(
        "beta KL(pi* || m) + (1 - beta) KL(pi || m), m = beta pi* + (1 - beta) pi",
        reference="Agarwal et al., 2023, arXiv 2306.13649",
    )
    beta: float = 0.5  # weight of the teacher in m; 0 is the forward KL, 1 the reverse KL

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check("beta", 0.0 <= self.beta <= 1.0, "a value in [0, 1]", self.beta)
        super().__post_init__()

    @property
    def infinite_off_support(self) -> bool:
        """Only as the reverse KL."""
        return self.beta == 1.0

    def terms(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Both KLs to the mixture."""
        return core.jsd_terms(teacher, student, beta=self.beta)


@dataclass(frozen=True)
class SkewKL(Divergence):
    """DistiLLM's skewed forward KL: the student is mixed with a little of the teacher."""

    name: ClassVar[str] = "skew_kl"
    card: ClassVar[Card] = _divergence_card(
        "KL(pi* || skew pi* + (1 - skew) pi)",
        reference="Ko et al., 2024, arXiv 2402.03898",
    )
    skew: float = 0.1  # weight of the teacher in the mixture

    def __post_init__(self) -> None:
        """Refuse values out of range; at 1 the loss is 0 for every student."""
        check("skew", 0.0 <= self.skew < 1.0, "a value in [0, 1)", self.skew)
        super().__post_init__()

    def terms(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The teacher's KL to the mixture."""
        return core.skew_kl_terms(teacher, student, skew=self.skew)


@dataclass(frozen=True)
class SkewReverseKL(SkewKL):
    """DistiLLM's skewed reverse KL: the teacher is mixed with a little of the student."""

    name: ClassVar[str] = "skew_reverse_kl"
    card: ClassVar[Card] = _divergence_card(
        "KL(pi || (1 - skew) pi* + skew pi)",
        reference="Ko et al., 2024, arXiv 2402.03898",
    )
    skew: float = 0.1  # weight of the student in the mixture

    @property
    def infinite_off_support(self) -> bool:
        """Only unmixed."""
        return self.skew == 0.0

    def terms(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The student's KL to the mixture."""
        return core.skew_reverse_kl_terms(teacher, student, skew=self.skew)


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """Total variation distance, in [0, 1]; its gradient vanishes where the student has no mass."""

    name: ClassVar[str] = "total_variation"
    card: ClassVar[Card] = _divergence_card(
        "the sum over the support of |pi* - pi| / 2, state by state",
        reference="Wen et al., 2023, arXiv 2307.15190",
    )

    def terms(self, teacher: Tensor, student: Tensor) -> Tensor:
        """``|p - q| / 2``."""
        return core.total_variation_terms(teacher, student)
