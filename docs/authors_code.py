"""The loss that the authors of Bellman Distill released, for comparison only.

It departs from (4.4) in every term: the response's token never enters, the projection is smoothed
over the whole vocabulary, the value is an expectation plus an entropy under that smoothed policy,
and the reward is averaged over all tokens. Written from its formulas, in the closed form per step.

Named in a recipe as ``objective: docs/authors_code.py:AuthorsCode``; see docs/objectives.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdistill import core
from tdistill.checks import check
from tdistill.training.objectives import Card, Objective, StepLoss, Views

if TYPE_CHECKING:
    from tdistill.evidence.batch import Batch
    from tdistill.models.set_scores import SetScores

ALPHA = 0.1  # a literal in the released code


@dataclass(frozen=True)
class AuthorsCode(Objective):
    """What the authors released instead of (4.2): outside the recommended set.

    Per step, with ``Q = max(z - max z, -10)``, ``Q_A`` Q on the set and 0 off it, means over the
    whole vocabulary, and V the smoothed value of :func:`authors_code_terms`:
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

    name: ClassVar[str] = "authors_code"
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
        loss = authors_code_loss(
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
            return authors_code_terms(logits, inside, top_p=top_p, epsilon=self.epsilon)

        return view.scores.reduce(terms, view.steps, chunk_size=view.chunk_size)


def authors_code_terms(
    logits: Float[Tensor, "T V"],
    inside: Bool[Tensor, "T V"],
    *,
    top_p: float,
    epsilon: float,
    lowest: float = -10.0,
) -> Float[Tensor, "T 3"]:
    """What their loss needs of every state.

    With ``Q = max(z - max_V z, lowest)`` and ``u = (softmax(Q) 1_A / p + epsilon) / sum``:
    the value ``sum_V u (Q - log u)``, and over all V tokens the means of ``1_A Q`` and ``1_A Q^2``.
    The clip is inside the softmax: V tokens at the floor weigh up to ``V exp(lowest)`` against the
    best token's 1.

    Args:
        logits: the student's logits, nats.
        inside: membership of the teacher's top-p set A.
        top_p: the set's threshold p; they divide by it, not by the mass.
        epsilon: smoothing, above 0, added to every token.
        lowest: lower clip of Q.

    Returns:
        Value, mean of Q and mean of its square, nats (squared), in the last dimension.

    Reference:
        The released code of Yu et al., 2025, arXiv 2505.20335.

    Example:
        >>> z, inside = torch.zeros(1, 4), torch.ones(1, 4).bool()
        >>> authors_code_terms(z, inside, top_p=1.0, epsilon=1e-6)[0, 0].exp()
        tensor(4.)
    """
    q = core.clip_q(logits - logits.amax(-1, keepdim=True), lowest=lowest)
    smoothed = q.softmax(-1) * inside / top_p + epsilon
    policy = smoothed / smoothed.sum(-1, keepdim=True)
    value = (policy * (q - policy.log())).sum(-1)
    members = q * inside
    return torch.stack([value, members.mean(-1), members.square().mean(-1)], -1)


def authors_code_loss(
    value: Float[Tensor, " T"],
    q_mean: Float[Tensor, " T"],
    q_square_mean: Float[Tensor, " T"],
    next_value: Float[Tensor, " T"],
    discount: Float[Tensor, " T"],
    *,
    chi_square: bool,
) -> Float[Tensor, " T"]:
    """``V - mean_a Q_A + mean_a (Q_A - discount V')^2 / (4 alpha)`` with alpha = 0.1.

    ``Q_A`` is Q on the set and 0 off it. The linear part is myopic: discount V' cancels in it.

    Args:
        value: V(s), nats.
        q_mean: mean of Q_A over the vocabulary.
        q_square_mean: mean of its square.
        next_value: V(s'), nats.
        discount: gamma, or 0 where the response ended.
        chi_square: whether the squared term is there.

    Returns:
        Loss per step, nats.

    Example:
        >>> one = torch.ones(1)
        >>> authors_code_loss(one, 0.5 * one, one, one, 0 * one, chi_square=True)
        tensor([3.])
    """
    linear = value - q_mean
    if not chi_square:
        return linear
    ahead = discount * next_value
    return linear + (q_square_mean - 2 * ahead * q_mean + ahead.square()) / (4 * ALPHA)
