"""A tiny teacher, rows and batches for the training tests, and dense formulas to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tdistill.evidence.batch import Batch
from tdistill.evidence.collator import Collator
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.models.score_forms import DenseStepScores
from tdistill.models.scores import step_scores
from tdistill.models.set_scores import SetScores
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.row_encoder import CachedResponse
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.source import CachedTeacher, LiveTeacher
from tdistill.training.arguments import training_arguments
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import KD, BellmanDistill, Views
from tdistill.training.trainer import DistillTrainer, RowDataset
from tiny import VOCABULARY, tiny_lm, tiny_model, tokenizer

PAPER = BellmanDistill(
    alpha=0.1, normaliser="set", linear_term="sampled", shift="vocabulary-max", q_min=-10.0
)
"""The choices of the paper and of its authors' code; the defaults are others."""

END: int = tokenizer().convert_tokens_to_ids("<end>")  # also padding
CAPTURE = CaptureConfig(captured_top_p=0.8, max_set_size=None)
EVERYTHING = CaptureConfig(captured_top_p=1.0, max_set_size=None)
STUDENT: dict[str, Any] = {"seed": 2, "num_hidden_layers": 1}


@cache
def teacher() -> LanguageModel:
    """A random network whose sets have from 1 to about 20 of the 64 tokens."""
    lm = tiny_lm("llama", seed=1)
    norm: Any = lm.model.get_submodule("model.norm")
    torch.nn.init.constant_(norm.weight, 4.0)  # logits with a deviation of 2.4
    return lm


@cache
@torch.no_grad()
def inside_rows(count: int = 16) -> tuple[Row, ...]:
    """Responses of 1 to 9 tokens sampled from the sets; two in three ended."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i in range(count):
        size = int(torch.randint(1, 6, (1,), generator=generator))
        prompt = tuple(torch.randint(2, VOCABULARY, (size,), generator=generator).tolist())
        row = Row(prompt, (0,), ended=i % 3 != 1)
        for _ in range(1 + (5 * i) % 9):
            last = live().evidence([row]).sets.row(-1)
            chosen = int(last[1].softmax(0).multinomial(1, generator=generator))
            row = Row(prompt, (*row.response_ids[:-1], int(last[0][chosen]), 0), row.ended)
        rows.append(Row(prompt, row.response_ids[:-1], row.ended))
    return tuple(rows)


def mixed_rows() -> list[Row]:
    """Uneven lengths; ended and cut; the last two leave their sets, one with an end token."""
    outside = [Row((3, 4), (7, 60, 8, 21), ended=False), Row((9,), (33, 12, END), ended=True)]
    return [*inside_rows()[:4], *outside]


def live(capture: CaptureConfig = CAPTURE) -> LiveTeacher:
    """The teacher in memory."""
    return LiveTeacher(teacher(), capture)


def cached(folder: Path, rows: list[Row], capture: CaptureConfig = CAPTURE) -> CachedTeacher:
    """The teacher's evidence of the rows, through a cache on disk."""
    with CacheWriter(folder, identity_of(teacher(), capture)) as writer:
        source = live(capture)
        writer.write("all", [CachedResponse(row, source.evidence([row]), "score") for row in rows])
    return CachedTeacher(Cache(folder))


def make_batch(rows: list[Row] | None = None, *, source: Any = None, **options: Any) -> Batch:
    """A batch of the mixed rows, or others."""
    collate = Collator(source or live(), END, **options)
    return collate(list(enumerate(mixed_rows() if rows is None else rows)))


def random_view(batch: Batch, *, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, SetScores]:
    """Random float64 logits [T, V] that want a gradient, and the view of them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(batch.action), VOCABULARY)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    return logits, SetScores(DenseStepScores(logits), batch.sets, batch.action, chunk_size=3)


def model_view(model: Any, batch: Batch) -> SetScores:
    """A network's scores at the batch."""
    scores = step_scores(model, batch.layout, vocabulary_size=VOCABULARY)
    return SetScores(scores, batch.sets, batch.action, chunk_size=4)


@dataclass(frozen=True)
class Dense:
    """The batch's sets over the whole vocabulary, [T, V]."""

    inside: Tensor
    policy: Tensor  # proj_p of the teacher, probabilities
    action: Tensor  # one-hot

    @classmethod
    def of(cls, batch: Batch) -> Dense:
        """Scatter the ragged sets of a batch, one step at a time."""
        policy = torch.zeros(len(batch.action), VOCABULARY, dtype=torch.float64)
        for t in range(len(policy)):
            ids, log_probs = batch.sets.row(t)
            policy[t, ids] = log_probs.double().softmax(0)
        action = one_hot(batch.action, VOCABULARY).double()
        return cls(policy > 0, policy, action)

    def on_set(self, q: Tensor) -> Tensor:
        """V_p: log-sum-exp over the members."""
        return q.masked_fill(~self.inside, float("-inf")).logsumexp(1)

    def following(self, value: Tensor, batch: Batch) -> Tensor:
        """V_p(s') at each step, 0 at the last step of a row."""
        after = torch.zeros_like(value)
        for t in range(len(value) - 1):
            if batch.row[t] == batch.row[t + 1]:
                after[t] = value[t + 1]
        return after


def dense_q(logits: Tensor, inside: Tensor, shift: str, q_min: float | None) -> Tensor:
    """Q over the whole vocabulary under a shift convention and a clip."""
    constant = {
        "raw": torch.zeros_like(logits[:, 0]),
        "set-max": logits.masked_fill(~inside, float("-inf")).max(1).values,
        "vocabulary-max": logits.max(1).values,
        "normalised": logits.logsumexp(1),
    }[shift]
    q = logits - constant[:, None]
    return q if q_min is None else torch.maximum(q, torch.tensor(q_min, dtype=q.dtype))


def dense_bellman(
    logits: Tensor, batch: Batch, choices: BellmanDistill, target: Tensor | None = None
) -> Tensor:
    """(4.4) or its identity form per step, over [T, V], written out."""
    dense = Dense.of(batch)
    q = dense_q(logits, dense.inside, choices.shift, choices.q_min)
    value = dense.on_set(q)
    q_a = (q * dense.action).sum(1)
    if choices.successor == "target":
        assert target is not None
        value_next = dense.on_set(dense_q(target, dense.inside, choices.shift, choices.q_min))
    else:
        value_next = value
    value_next = value_next if choices.successor == "residual" else value_next.detach()
    reward = q_a - batch.transitions.discount * dense.following(value_next, batch)
    first = value
    if choices.normaliser == "vocabulary":
        first = value - (logits.softmax(1) * dense.inside).sum(1).log()
    second = q_a if choices.linear_term == "sampled" else (dense.policy * q).sum(1)
    penalty = reward**2 / (4 * choices.alpha) if choices.phi == "chi-square" else 0 * reward
    # A cut row has no reward at its last step, or ends there where nothing else would hold V.
    cut = [bool(t) or choices.successor != "residual" for t in batch.transitions.can_bootstrap]
    kept = torch.stack([p if keep else 0 * p for p, keep in zip(penalty, cut, strict=True)])
    return first - second + kept


def student(**options: Any) -> Any:
    """A network smaller than the teacher, of the same vocabulary."""
    return tiny_model(**{"family": "llama", **STUDENT, **options})


def own_rows(count: int = 8) -> list[Row]:
    """Rows as if the student had written them."""
    rows = inside_rows(16 + count)[16:]
    return [
        Row(r.prompt_ids, r.response_ids, r.ended, "student", (-1.0,) * len(r.response_ids))
        for r in rows
    ]


def learn(objective: Any, batch: Batch, *, updates: int = 30) -> tuple[list[float], list[float]]:
    """Losses of the tiny student over some updates, and its forward KL from the set's teacher."""
    model, losses, distances = student(), [], []
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(updates):
        view = model_view(model, batch)
        loss = objective.loss(Views(view), batch).loss.mean()
        distances.append(float(KD().loss(Views(view), batch).loss.mean().detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, distances


def make_trainer(folder: Path, objective: Any, *, model: Any = None, **options: Any) -> Any:
    """A trainer of the tiny student on the mixed rows; options of TrainConfig, and a few more."""
    rows = options.pop("rows", None) or list(inside_rows(16))
    source = options.pop("source", None) or live()
    text = options.pop("text", ())
    live_teacher = options.pop("live_teacher", None)
    callbacks = options.pop("callbacks", None)
    settings = {"steps": 2, "batch_size": 8, "warmup_steps": 1, "learning_rate": 1e-3}
    config = TrainConfig(**{**settings, "chunk_size": 4, **options})
    collate = Collator(
        source,
        END,
        set_top_p=objective.set_top_p,
        out_of_set=objective.out_of_set,
        discount=objective.discount,
        padding_side=config.padding_side,
        text=text,
        share_prefix=config.share_prefix,
        tokens_per_forward=config.tokens_per_forward,
    )
    return DistillTrainer(
        student() if model is None else model,
        objective=objective,
        config=config,
        vocabulary_size=VOCABULARY,
        live_teacher=live_teacher,
        args=training_arguments(config, folder),
        train_dataset=RowDataset(rows),
        data_collator=collate,
        callbacks=callbacks,
    )
