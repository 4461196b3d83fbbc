"""How well a model imitates the teacher on the teacher's own held-out responses: exact numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdistill.core import forward_kl_terms, project, set_forward_kl, tail_mass
from tdistill.data.examples import Example
from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.places import metrics_by_place, sums_by_place
from tdistill.evaluation.policy import kl_of_members
from tdistill.evaluation.served import AnyModel, ServedTeacher
from tdistill.evidence.batch import Batch
from tdistill.evidence.collator import Collator
from tdistill.evidence.evidence import EvidenceSource
from tdistill.evidence.rows import Row
from tdistill.models.head import LinearHead
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import TOKENS_AT_ONCE, in_passes
from tdistill.models.score_forms import LinearStepScores, StepScores
from tdistill.models.scores import step_scores
from tdistill.models.set_scores import SetScores
from tdistill.teacher.source import LiveTeacher

_NO_DIVERGENCE = 1e-4  # nats a step; less is rounding


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out teacher responses with what the teacher's scores at every step are made of.

    Made once and used for every model: the teacher's forward pass is not repeated where its scores
    are a product of hidden states, which are kept in the host's memory. Full logits are too large
    to keep, and computed anew. Of a served teacher the sets are all there is.

    Attributes:
        batches: the rows, packed, with their top-p sets.
        teacher: the teacher; None where it is served.
        kept: its hidden states of each batch, and its output layer; None where its scores are not
            made so; nothing where it is served.
        prompt: which prompt each row, over all batches, responds to.
        numbers: of the prompts, by their tokens.
        vocabulary_size: tokens shared by teacher and students.
    """

    batches: Sequence[Batch]
    teacher: LiveTeacher | None
    kept: Sequence[tuple[LinearHead, Tensor] | None]
    prompt: np.ndarray
    numbers: Mapping[tuple[int, ...], int]
    vocabulary_size: int

    @property
    def divergence(self) -> str:
        """What tells how far a model is from the teacher."""
        return "kl_with_rest" if self.teacher is None else "forward_kl"

    def teacher_scores(self, number: int) -> StepScores:
        """The teacher's scores at the steps of a batch."""
        known = self.kept[number]
        if known is None:
            assert self.teacher is not None, "a served teacher has no scores"
            return self.teacher.scores(self.batches[number].layout)
        head, hidden = known
        return LinearStepScores(head, hidden.to(head.weight.device))


def hold_out(
    rows: Sequence[Row],
    source: EvidenceSource,
    teacher: LiveTeacher | ServedTeacher,
    *,
    set_top_p: float,
    batch_size: int,
) -> HeldOut:
    """Pack held-out rows and run the teacher on them once.

    Args:
        rows: teacher responses to prompts never seen in training.
        source: their evidence.
        teacher: the teacher itself, for the exact divergence, or the one that is served.
        set_top_p: set off which mass counts as leak.
        batch_size: most rows of one forward pass.
    """
    live = teacher if isinstance(teacher, LiveTeacher) else None
    collator = Collator(
        source,
        teacher.teacher.pad_id if isinstance(teacher, LiveTeacher) else teacher.face.pad_id,
        set_top_p=set_top_p,
        share_prefix=True,
        tokens_per_forward=TOKENS_AT_ONCE,
    )
    groups = list(in_passes(rows, batch_size))
    batches = [collator([(i, rows[i]) for i in group]) for group in groups]
    kept = [] if live is None else [_kept(live.scores(batch.layout)) for batch in batches]
    numbers = {ids: i for i, ids in enumerate(dict.fromkeys(row.prompt_ids for row in rows))}
    prompt = np.asarray([numbers[rows[i].prompt_ids] for group in groups for i in group])
    return HeldOut(batches, live, kept, prompt, numbers, teacher.vocabulary_size)


def _kept(scores: StepScores) -> tuple[LinearHead, Tensor] | None:
    linear = isinstance(scores, LinearStepScores)
    return (scores.head, scores.hidden.cpu()) if linear else None


@torch.no_grad()
def imitation(model: AnyModel, held_out: HeldOut) -> dict[str, Sample]:
    """Forward KL, KL on the set, and leak of a model, nats or mass, weighted by steps, a prompt.

    Args:
        model: the model to judge; a served one is the teacher itself.
        held_out: see :func:`hold_out`.

    Returns:
        ``forward_kl``: exact, over the full vocabulary; ``set_kl``: within the set, blind to
        ``leak``: the model's mass off the teacher's set; ``forward_kl@K`` for each place. Where
        the teacher is served ``kl_with_rest`` in place of ``forward_kl``: see
        :func:`tdistill.evaluation.policy.kl_with_rest`.
    """
    steps: dict[str, list[np.ndarray]] = {held_out.divergence: [], "set_kl": [], "leak": []}
    for number in range(len(held_out.batches)):
        itself = isinstance(model, ServedTeacher)
        found = _of_itself(held_out, number) if itself else _of_student(model, held_out, number)
        for name, values in found.items():
            steps[name].append(values.double().cpu().numpy())
    lengths = np.concatenate([np.bincount(batch.row) for batch in held_out.batches]).tolist()

    def of_prompts(values: np.ndarray) -> np.ndarray:
        # Responses to one prompt are not independent: one value a prompt.
        sums = sums_by_place(values, lengths)
        totals = np.zeros((len(held_out.numbers), sums.shape[1]))
        np.add.at(totals, held_out.prompt, sums)
        return totals

    count = of_prompts(np.ones(sum(lengths)))
    sums = {name: of_prompts(np.concatenate(parts)) for name, parts in steps.items()}
    found = {name: Sample(places.sum(1), count.sum(1)) for name, places in sums.items()}
    return found | metrics_by_place(held_out.divergence, sums[held_out.divergence], count)


def _of_student(model: LanguageModel, held_out: HeldOut, number: int) -> dict[str, Tensor]:
    """What is measured at each step of a batch."""
    batch = held_out.batches[number].to(model.device)
    sets, size = batch.teacher_sets, held_out.vocabulary_size
    scores = step_scores(model.model, batch.layout, vocabulary_size=size)
    student = SetScores(scores, sets, batch.action)
    log_policy = project(student.on_set, sets.offsets)
    if held_out.teacher is None:
        divergence = kl_of_members(sets, student.on_set - student.log_normaliser[sets.step])
    else:
        teacher = held_out.teacher_scores(number)
        divergence = student.divergence_from(teacher, forward_kl_terms)
    return {
        held_out.divergence: divergence,
        "set_kl": set_forward_kl(sets.log_probs, log_policy, sets.offsets),
        "leak": 1 - (student.set_value - student.log_normaliser).exp(),
    }


def _of_itself(held_out: HeldOut, number: int) -> dict[str, Tensor]:
    """The same of a served teacher: it diverges nowhere from itself, and its sets say the rest."""
    sets = held_out.batches[number].teacher_sets
    none = torch.zeros(len(sets))
    return {
        held_out.divergence: none,
        "set_kl": none,
        "leak": tail_mass(sets.log_probs, sets.offsets),
    }


def exposure_bias(
    own: Sample, examples: Sequence[Example], on_teacher: Sample, held_out: HeldOut
) -> Sample | None:
    """How much more a step costs where the model went itself than where the teacher went.

    ``mean KL(teacher || model) on the model's prefixes / mean on the teacher's - 1``, means over
    prompts of the mean over a prompt's steps; 0 is no bias. It is the excess accumulated error of
    Arora et al. but for lengths: theirs are equal, these are those of the responses.

    Args:
        own: the divergence at the states of the model's responses, weighted by steps.
        examples: the prompts of those.
        on_teacher: the divergence at the states of the teacher's, as `imitation` gives it.
        held_out: what that was measured on.

    Returns:
        The ratio of sums as a sample over prompts; None where a prompt has no held-out response, or
        the model is the teacher.

    Reference:
        Arora et al. 2022, "Why Exposure Bias Matters", arXiv 2204.01171.
    """
    prompts = [example.prompt_ids for example in examples]
    if not held_out.numbers.keys() >= set(prompts):
        return None
    assert own.weights is not None
    assert on_teacher.weights is not None
    theirs = (on_teacher.values / on_teacher.weights)[[held_out.numbers[ids] for ids in prompts]]
    ours = own.values.sum(axis=1) / own.weights.sum(axis=1)
    if theirs.mean() < _NO_DIVERGENCE:
        return None
    return Sample(ours - theirs, np.maximum(theirs, 1e-12))
