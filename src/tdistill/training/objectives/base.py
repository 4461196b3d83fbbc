"""What an objective is: a frozen dataclass with the data it needs and a loss per step.

Every choice of an objective is a field, and where gradients stop is visible in its class. The
modules of this package import no torch, so that recipes can be read without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from tdistill.checks import check, check_mass
from tdistill.training.objectives.critic_config import CriticConfig

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.evidence.batch import Batch, Counts
    from tdistill.models.score_forms import StepScores
    from tdistill.models.set_scores import SetScores

__all__ = ["Card", "Folding", "Objective", "StepLoss", "Views"]

RowKind = Literal["references", "teacher"]
Family = Literal["cloning", "temporal-difference", "online", "comparison"]


@dataclass(frozen=True, eq=False)
class StepLoss:
    """Loss of every step, nats, and the parts of it that are worth logging.

    Attributes:
        loss: per step; the trainer averages it over the trained steps.
        parts: further per-step quantities by name.
        critic: loss of the critic, which has an optimiser of its own; None where there is none.
        sums: sums of values and of their weights by name, for the means of later updates.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    critic: Tensor | None = None
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Views:
    """The models at a batch.

    Attributes:
        student: the trained model.
        teacher: full scores of the live teacher, where the objective needs them.
        target: the averaged copy of the student, where the objective needs it.
        critic: g of set members and actions, nats, where the objective has a critic.
        averaged_critic: the same by its averaged copy, without a gradient.
        price: of every token, learned with the critic [V], nats.
        means: of what was summed in earlier updates, by name.
        update: number of the present update, from 0.
        updates: of the whole run.
        counts: of the whole update; None: the batch is all of it.
    """

    student: SetScores
    teacher: StepScores | None = None
    target: SetScores | None = None
    critic: SetScores | None = None
    averaged_critic: SetScores | None = None
    price: Tensor | None = None
    means: dict[str, Tensor] = field(default_factory=dict)
    update: int = 0
    updates: int = 1
    counts: Counts | None = None

    def counts_of(self, batch: Batch) -> Counts:
        """What means are taken over, whatever parts the update is computed in."""
        return batch.counts if self.counts is None else self.counts


class Folding(NamedTuple):
    """How a finished student's output layer takes the critic's values in."""

    weight: float  # w of pi exp(-w g)
    keep_frequencies: bool = False  # of tokens, on the rows of the training (9.9)


@dataclass(frozen=True)
class Card:
    """One row of `tdistill objectives`: what an objective is, in words."""

    family: Family
    minimises: str
    optimum: str
    bias: str  # of the optimum against the teacher, on the set
    data: str
    cost: str  # of one trained token, beyond the student's body
    reference: str


@dataclass(frozen=True)
class Objective:
    """Base of the objectives: what data one needs, and its loss.

    Class attributes:
        name: key in recipes.
        card: what it is, in words.
        rows: trains on the ground-truth references or on the teacher's responses.
        needs_tails: whether the evidence must hold sampled tail tokens.
        needs_student_rows: whether a share of the batch must be the student's own responses.
    """

    name: ClassVar[str]
    card: ClassVar[Card]
    rows: ClassVar[RowKind] = "teacher"
    needs_student_rows: ClassVar[bool] = False
    needs_tails: ClassVar[bool] = False

    set_top_p: float | None = 0.8  # mass of the candidate sets; null takes all that was captured
    min_gain: float | None = None  # ends a set where a member adds less to its log mass, nats
    tolerated_gap: float | None = None  # nats of Q; replaces set_top_p by what (3.3) asks for
    gap_rule: Literal["global", "per-state"] = "global"  # one p for all states, or one min_gain
    out_of_set: Literal["insert", "drop", "refuse"] = (
        "insert"  # an action outside its set; drop: cuts there
    )
    discount: float = 0.99  # gamma
    lm_weight: float = 1.0  # weight of the language-model stream; used when data.lm_text is given
    student_share: float = 0.0  # of each batch: the student's own responses, scored by the teacher
    student_share_end: float | None = None  # share at the last update, linearly; null: constant
    teacher_mix: float = 0.0  # weight of the teacher in the sampler of the student's responses
    reference_share: float = 0.0  # of each batch: ground-truth responses, scored by the teacher
    keep_share: float = 1.0  # of the rows: the likeliest under the student, a token
    # start: of each prompt's rows, by the start; update: of each update's, by the student then.
    keep_when: Literal["start", "update"] = "start"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.set_top_p is not None:
            check_mass("set_top_p", self.set_top_p)
        gain, gap = self.min_gain, self.tolerated_gap
        check("min_gain", gain is None or gain >= 0.0, "at least 0 nats", gain)
        check("tolerated_gap", gap is None or gap > 0.0, "above 0 nats", gap)
        check("tolerated_gap", gap is None or self.needs_sets, "null: this has no sets", gap)
        check("tolerated_gap, min_gain", None in (gap, gain), "one of the two", (gap, gain))
        check("discount", 0.0 <= self.discount <= 1.0, "a value in [0, 1]", self.discount)
        wanted = "above 0 with a tolerated_gap: no later step loses anything"
        check("discount", gap is None or self.discount > 0.0, wanted, self.discount)
        check("lm_weight", self.lm_weight >= 0.0, "at least 0", self.lm_weight)
        for name in ("student_share", "student_share_end", "teacher_mix", "reference_share"):
            share = getattr(self, name)
            check(name, share is None or 0.0 <= share <= 1.0, "a value in [0, 1]", share)
        check("keep_share", 0.0 < self.keep_share <= 1.0, "a value in (0, 1]", self.keep_share)
        most = max(self.student_share, self.student_share_end or 0.0) + self.reference_share
        check("student_share + reference_share", most <= 1.0, "at most 1", most)
        wanted = "above 0: this objective learns from the student's own responses"
        enough = self.uses_student_rows or not self.needs_student_rows
        check("student_share", enough, wanted, self.student_share)

    @property
    def uses_student_rows(self) -> bool:
        """Whether some batch holds the student's own responses."""
        return max(self.student_share, self.student_share_end or 0.0) > 0.0

    @property
    def needs_sets(self) -> bool:
        """Whether batches must carry the teacher's top-p sets."""
        return True

    @property
    def needs_live_teacher(self) -> bool:
        """Whether the teacher's full distribution is needed at every step."""
        return False

    @property
    def sampled_negatives(self) -> int | None:
        """Tokens drawn for each update to stand in for the vocabulary; None: none are."""
        return None

    @property
    def linear_in_normaliser(self) -> bool:
        """Whether its loss has the student's log-normaliser as a plain term, or none at all.

        Then an unbiased estimate of it, from a share of the steps, gives an unbiased loss.
        """
        return False

    @property
    def reads_normaliser(self) -> bool:
        """Whether it reads the teacher's log-normalisers, which a server does not give."""
        return False

    @property
    def target_network(self) -> float | None:
        """Decay of the averaged copy of the student that gives V(s'); None: there is none."""
        return None

    @property
    def critic_config(self) -> CriticConfig | None:
        """Settings of the critic that learns beside the student; None: there is none."""
        return None

    @property
    def folding(self) -> Folding | None:
        """How the finished output layer takes the critic's values in; None: it does not."""
        return None

    @property
    def unfolded(self) -> Objective | None:
        """The same with a weight of 0, by which it is trained alike; None: it folds nothing."""
        return None

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """Loss per step: what every objective defines.

        Args:
            views: the models at the batch.
            batch: rows and evidence.
        """
        raise NotImplementedError
