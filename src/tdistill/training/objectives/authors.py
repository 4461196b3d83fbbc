"""The loss of the released Bellman Distill code, for comparison only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives.base import Card, Objective, StepLoss, Views

if TYPE_CHECKING:
    from torch import Tensor

    from tdistill.evidence.batch import Batch
    from tdistill.models.set_scores import SetScores


@dataclass(frozen=True)
class AuthorsCode(Objective):
    """What the authors released instead of (4.2): outside the recommended set.

    Per step, with ``Q = max(z - max z, -10)``, ``Q_A`` Q on the set and 0 off it, means over the
    whole vocabulary, and V the smoothed value of :func:`tdistill.core.authors_code_terms`:
    ``V - mean Q_A + mean (Q_A - discount V')^2 / 0.4``, with the gradient through V'. The
    response's token does not enter, and the means are of order K / V: in effect it is
    ``V + 2.5 discount^2 V'^2``, which hardly depends on the teacher.

    Where the release cannot be taken literally:

    - it does not run as published; this is the closed form of its formulas;
    - its smoothing is in a file that was not published; ``epsilon`` is our guess;
    - its padding stands for termination: where the padding id is the end id, the step that emits
      the end token is not trained and the step before it has V' = 0. Here the end token is a step
      like others, with V' = 0, as in the release where the two ids differ;
    - the last step of a cut response only gives V' to the step before it. Here its loss is 0, and
      it counts in the mean, whereas the release divides by the other steps;
    - sets and loss are in float32, there in the model's own precision; the text stream is plain
      cross-entropy, there half of it is a divergence from the teacher.
    """

    name: ClassVar[str] = "authors-code"
    card: ClassVar[Card] = Card(
        family="comparison",
        minimises="V - mean Q_A + mean (Q_A - discount V')^2 / 0.4, means over the vocabulary",
        optimum="unknown; not the teacher: it lowers V whatever the response's token",
        bias="total: it does not imitate",
        data="teacher responses with sets",
        cost="V D",
        reference="the released code of Yu et al., 2025, arXiv 2505.20335",
    )
    chi_square: bool = True  # the squared term; without it the loss is myopic
    epsilon: float = 1e-6  # smoothing of the projected student, on every token; not published

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        wanted = "above 0: the entropy of the smoothed policy needs it"
        check("epsilon", self.epsilon > 0.0, wanted, self.epsilon)
        wanted = "a mass: the released loss divides by it"
        check("set_top_p", self.set_top_p is not None, wanted, self.set_top_p)

    def loss(self, views: Views, batch: Batch) -> StepLoss:
        """The released loss per step."""
        value, q_mean, q_square_mean = self._terms(views.student, batch).unbind(-1)
        following = core.successor(value, batch.transitions.has_successor)
        loss = core.authors_code_loss(
            value,
            q_mean,
            q_square_mean,
            following,
            batch.transitions.discount,
            chi_square=self.chi_square,
        )
        loss = loss.where(batch.transitions.can_bootstrap, loss.new_zeros(()))
        return StepLoss(loss, {"value": value})

    def _terms(self, view: SetScores, batch: Batch) -> Tensor:
        """Value and means of every state [T, 3], by chunks of steps."""
        top_p, offsets = self.set_top_p, batch.sets.offsets
        assert top_p is not None
        step = batch.sets.step
        inserted = batch.out_of_set[step] & (batch.sets.ids == batch.action[step])

        def terms(logits: Tensor, steps: Tensor) -> Tensor:
            first, last = int(steps[0]), int(steps[-1])
            members = slice(int(offsets[first]), int(offsets[last + 1]))
            inside = logits.new_zeros(logits.shape).bool()
            inside[step[members] - first, batch.sets.ids[members]] = ~inserted[members]
            return core.authors_code_terms(logits, inside, top_p=top_p, epsilon=self.epsilon)

        return view.scores.reduce(terms, view.steps, chunk_size=view.chunk_size)
