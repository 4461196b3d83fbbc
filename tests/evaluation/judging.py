"""A tiny teacher, a tiny student, prompts, and dense log-probabilities for the evaluation tests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdistill.data.examples import Example
from tdistill.evaluation.config import EvaluationConfig
from tdistill.evaluation.evaluate import Exam
from tdistill.evaluation.imitation import HeldOut, hold_out
from tdistill.evaluation.intervals import Sample
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.source import LiveTeacher
from tiny import tiny_lm, tokenizer

END = 1
CAPTURE = CaptureConfig(captured_top_p=0.9, max_set_size=None)
PROMPTS = ("a b c", "d", "e f g h", "i j")
ROWS = (
    Row((2, 3, 4), (5, 6, END), ended=True),
    Row((5,), (60, 7, 8, 9, 10), ended=False),
    Row((6, 7, 8, 9), (11,), ended=False),
    Row((10, 11), (12, 13, 14, END), ended=True),
    Row((10, 11), (END,), ended=True),
)


@cache
def teacher() -> LanguageModel:
    """A random network whose distributions are far from uniform."""
    return widened(tiny_lm("llama", seed=1))


@cache
def student() -> LanguageModel:
    """A network of another family and size; its output layer has padding rows."""
    return widened(tiny_lm("qwen2", seed=2, num_hidden_layers=1, vocab_size=72))


def widened(lm: LanguageModel) -> LanguageModel:
    """Logits with a deviation of about 2."""
    norm: Any = lm.model.get_submodule("model.norm")
    torch.nn.init.constant_(norm.weight, 4.0)
    return lm


def examples(*references: str, prompts: tuple[str, ...] = PROMPTS) -> list[Example]:
    """The prompts, each with the same references."""
    encode = tokenizer().encode
    return [Example(p, tuple(encode(p)), references, (20, END), True) for p in prompts]


def held_out(rows: tuple[Row, ...] = ROWS, *, batch_size: int = 2, top_p: float = 0.8) -> HeldOut:
    """The rows with the teacher's scores."""
    live = LiveTeacher(teacher(), CAPTURE)
    return hold_out(rows, live, live, set_top_p=top_p, batch_size=batch_size)


def exam(**changes: Any) -> Exam:
    """An examination of the prompts; changes of the config, or ``test`` and ``valid``."""
    test = changes.pop("test", None) or examples("a b")
    valid = changes.pop("valid", examples("a b", prompts=("k l", "m")))
    settings = {"seeds": 2, "max_new_tokens": 6, "batch_size": 3, "tuned_models": ()} | changes
    return Exam(teacher(), test, valid, held_out(), EvaluationConfig(**settings), 64)


@torch.no_grad()
def dense_log_probs(lm: LanguageModel, row: Row) -> Tensor:
    """The model's distribution at every step of one row, alone and without padding: [T, 64]."""
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids[:-1]]])
    logits = lm.model(ids).logits[0, len(row.prompt_ids) - 1 :, :64]
    return logits.double().log_softmax(-1)


def log_prob(lm: LanguageModel, row: Row) -> float:
    """``log pi(response | prompt)``, nats."""
    dense = dense_log_probs(lm, row)
    return float(dense[np.arange(len(dense)), row.response_ids].sum())


def intervals(samples: Mapping[str, Sample | None]) -> dict[str, Any]:
    """The interval of every sample."""
    return {name: None if s is None else s.interval() for name, s in samples.items()}
