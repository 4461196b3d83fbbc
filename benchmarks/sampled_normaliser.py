"""Bias and variance of ``normaliser: sampled`` against the exact normaliser.

    python benchmarks/sampled_normaliser.py                                  # synthetic logits
    python benchmarks/sampled_normaliser.py --student DIR --cache DIR        # a real student

For every number of negatives, over repeated draws: bias and standard deviation of log-normaliser
per step (nats), standard deviation of its mean over the batch, and how far the gradient of the
cloning loss with respect to the hidden states is from the exact one (relative norm of the
difference of one draw and of the mean over draws; cosine of one draw).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tdistill.core import TopPSets, expectation, project, top_p_sets
from tdistill.evidence.batch import Batch
from tdistill.evidence.collator import Collator
from tdistill.evidence.evidence import Evidence, EvidenceSource
from tdistill.evidence.rows import Row
from tdistill.models import negatives
from tdistill.models.head import LinearHead
from tdistill.models.language_model import load
from tdistill.models.score_forms import LinearStepScores
from tdistill.models.scores import step_scores
from tdistill.models.set_scores import SetScores
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.source import CachedTeacher


@dataclass
class Given(EvidenceSource):
    """Evidence that is made up."""

    sets: TopPSets

    def evidence(self, rows: object, *, set_top_p: float | None = None) -> Evidence:
        """The sets, whatever the rows."""
        steps = len(self.sets.offsets) - 1
        return Evidence(self.sets, torch.zeros(steps), torch.zeros(steps))


def synthetic(steps: int, vocabulary: int, top_p: float) -> tuple[Batch, LinearHead, Tensor]:
    """Peaked logits: 64 random directions and a rank-frequency bias; a teacher nearby."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(steps, 64, generator=generator)
    weight = torch.randn(vocabulary, 64, generator=generator) / 2
    head = LinearHead(weight, -(1 + torch.arange(vocabulary).float()).log())
    noise = 0.7 * torch.randn(steps, vocabulary, generator=generator)
    sets = top_p_sets((head.logits(hidden) + noise).log_softmax(-1), top_p)
    action = sets.ids[sets.offsets[:-1]].tolist()
    row = Row((0,), tuple(action), ended=False)
    return Collator(Given(sets), 0)([(0, row)]), head, hidden


def real(student: str, cache: Path, rows: int, top_p: float) -> tuple[Batch, LinearHead, Tensor]:
    """A student's hidden states on the first rows of a cache."""
    lm, kept = load(student), Cache(cache)
    collate = Collator(CachedTeacher(kept), lm.pad_id, set_top_p=top_p)
    batch = collate(list(enumerate(kept.rows()[:rows])))
    with torch.no_grad():
        scores = step_scores(
            lm.model, batch.layout, vocabulary_size=lm.vocabulary_size, head="linear"
        )
    assert isinstance(scores, LinearStepScores)
    return batch, scores.head, scores.hidden


def one(batch: Batch, head: LinearHead, hidden: Tensor, negatives: int) -> tuple[Tensor, Tensor]:
    """Log-normaliser, and the gradient of the cloning loss; 0 negatives is the exact one."""
    hidden = hidden.clone().requires_grad_()
    view = SetScores(LinearStepScores(head, hidden), batch.sets, batch.action)
    value = view.sampled_log_normaliser(negatives) if negatives else view.log_normaliser
    policy = project(batch.sets.log_probs, batch.sets.offsets)
    loss = value - expectation(view.on_set, policy, batch.sets.offsets)
    return value.detach().double(), torch.autograd.grad(loss.sum(), hidden)[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--student", help="folder of a student; synthetic logits without it")
    parser.add_argument("--cache", type=Path, help="a cache whose rows the student reads")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=50_000, help="of the synthetic logits")
    parser.add_argument("--top-p", type=float, default=0.8)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--uniform", type=float, help="share of the proposal that is uniform")
    parser.add_argument("--negatives", type=int, nargs="+", default=[64, 256, 1024, 4096])
    args = parser.parse_args()
    if args.uniform is not None:
        negatives._UNIFORM = args.uniform
    torch.manual_seed(0)
    if args.student:
        batch, head, hidden = real(args.student, args.cache, args.rows, args.top_p)
    else:
        batch, head, hidden = synthetic(300, args.vocabulary, args.top_p)
    head = replace(head, weight=head.weight.detach())
    exact, slope = one(batch, head, hidden, 0)
    student = SetScores(LinearStepScores(head, hidden), batch.sets, batch.action)
    leak = float(student.leak(sample=10**6)[0].mean())
    print(f"steps {len(hidden)}, vocabulary {len(head.weight)}, mass off the set {leak:.3f}")
    print("negatives   bias    sd  sd of mean  gradient error  of mean  cosine")
    for count in args.negatives:
        found = [one(batch, head, hidden, count) for _ in range(args.draws)]
        error = torch.stack([value - exact for value, _ in found])
        slopes = torch.stack([g for _, g in found])
        apart = [float((g - slope).norm() / slope.norm()) for g in slopes]
        mean_apart = float((slopes.mean(0) - slope).norm() / slope.norm())
        cosine = [float((g * slope).sum() / (g.norm() * slope.norm())) for g in slopes]
        print(
            f"{count:9d} {error.mean():+.4f} {error.std(0).mean():.3f} {error.mean(1).std():11.4f}"
            f" {math.fsum(apart) / len(apart):15.3f} {mean_apart:8.3f}"
            f" {math.fsum(cosine) / len(cosine):7.3f}"
        )


if __name__ == "__main__":
    main()
