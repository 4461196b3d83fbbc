"""A model at several temperatures: what quality costs in entropy and in diversity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdistill.core import reverse_kl_terms
from tdistill.data.examples import Example
from tdistill.evaluation.diversity import distinct_responses, diversity, words_of
from tdistill.evaluation.evaluate import Exam
from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.responses import Responses, respond, score_responses, text_of
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import alike, lay_out
from tdistill.models.scores import StepScores, step_scores
from tdistill.progress import Progress

_CHUNK = 128  # steps whose full logits exist at once


def sweep(label: str, model: LanguageModel, exam: Exam) -> list[dict[str, Any]]:
    """A model sampled at each temperature on the test prompts; nothing where none is configured.

    Args:
        label: name of its row.
        model: the model.
        exam: what it is judged on.

    Returns:
        A record a temperature: ``temperature``; ``per_prompt``, the samples behind the metrics of
        `score_responses`, with ``entropy`` (of the policy at this temperature, nats a token),
        ``reverse_kl`` (of that policy from the teacher) and ``distinct_responses`` (share of those
        to a prompt, with several seeds); ``together``, the diversity of all responses.
    """
    config = exam.config.sweep
    if config is None:
        return []
    bar = Progress(f"sweep {label}", len(config.temperatures) * config.seeds * len(exam.test))
    points = []
    for temperature in config.temperatures:

        def show(done: int, temperature: float = temperature) -> None:
            bar.update(bar.done + done, f"T = {temperature:g}")

        made = respond(
            model,
            [example.prompt_ids for example in exam.test],
            Decoding(temperature=temperature),
            seeds=config.seeds,
            max_new_tokens=exam.config.max_new_tokens,
            batch_size=exam.config.batch_size,
            on_batch=show,
        )
        points.append({"temperature": temperature, **_measured(made, model, exam)})
    bar.close()
    return points


def _measured(made: Responses, model: LanguageModel, exam: Exam) -> dict[str, Any]:
    size, batch_size = exam.vocabulary_size, exam.config.batch_size
    metrics = score_responses(
        made, exam.test, model, exam.teacher, vocabulary_size=size, batch_size=batch_size
    )
    metrics |= policy_divergence(
        made, exam.test, model, exam.teacher, vocabulary_size=size, batch_size=batch_size
    )
    words = [[words_of(text_of(model, r)) for r in round_] for round_ in made.responses]
    if len(words) > 1:
        shares = [distinct_responses(of_prompt) for of_prompt in zip(*words, strict=True)]
        metrics["distinct_responses"] = Sample(np.asarray(shares))
    return {
        "per_prompt": {name: m.to_dict() for name, m in metrics.items() if m is not None},
        "together": diversity([response for round_ in words for response in round_]),
    }


@torch.no_grad()
def policy_divergence(
    made: Responses,
    examples: Sequence[Example],
    model: LanguageModel,
    teacher: LanguageModel,
    *,
    vocabulary_size: int,
    batch_size: int,
) -> dict[str, Sample]:
    """Entropy of the policy that made responses, and its divergence from the teacher.

    Both are sums over the vocabulary at every state of the responses, so they have no noise of the
    tokens drawn there; the teacher is at temperature 1.

    Args:
        made: responses sampled at a temperature, from the whole vocabulary.
        examples: the prompts they answer.
        model: who made them.
        teacher: whom it is to imitate.
        vocabulary_size: tokens shared by both.
        batch_size: rows of one forward pass.

    Returns:
        ``entropy`` and ``reverse_kl``, nats a token.
    """
    rows = [
        Row(example.prompt_ids, response.ids, response.ended)
        for round_ in made.responses
        for example, response in zip(examples, round_, strict=True)
    ]
    order, totals = alike(rows), np.zeros((2, len(rows)))
    for first in range(0, len(rows), batch_size):
        group = order[first : first + batch_size]
        laid = lay_out([rows[i] for i in group], model.pad_id)
        own, other = (
            step_scores(lm.model, laid.to(lm.device), vocabulary_size=vocabulary_size)
            for lm in (model, teacher)
        )
        terms = _divergence_by_step(own, other, made.decoding.temperature, model.device)
        parts = terms.cpu().double().split([len(rows[i].response_ids) for i in group], dim=1)
        totals[:, group] = torch.stack([part.sum(1) for part in parts], dim=1).numpy()
    lengths = np.asarray([len(row.response_ids) for row in rows], dtype=np.float64)
    entropy, divergence, weights = (
        x.reshape(len(made.responses), len(examples)).T for x in (*totals, lengths)
    )
    return {"entropy": Sample(entropy, weights), "reverse_kl": Sample(divergence, weights)}


def _divergence_by_step(
    own: StepScores, teacher: StepScores, temperature: float, device: torch.device
) -> Tensor:
    """Entropy and reverse KL of every step, nats: [2, T]."""
    parts = []
    for start in range(0, len(own), _CHUNK):
        chunk = start, min(start + _CHUNK, len(own))
        policy = (own.rows(*chunk) / temperature).log_softmax(-1)
        target = teacher.rows(*chunk).to(device).log_softmax(-1)
        entropy = torch.special.entr(policy.exp()).sum(-1)
        parts.append(torch.stack([entropy, reverse_kl_terms(target, policy).sum(-1)]))
    return torch.cat(parts, dim=1)
