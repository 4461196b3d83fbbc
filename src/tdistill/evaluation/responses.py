"""Scores of a model's own responses, in every decoding: overlap, likelihood, length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tdistill.data.examples import Example
from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.metrics import exact_match, rouge_l
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.generation import Response, decoding_sampler, generate, seed_of
from tdistill.models.language_model import LanguageModel
from tdistill.models.likelihood import response_log_probs


@dataclass(frozen=True, eq=False)
class Responses:
    """Responses of a model to P prompts under S seeds.

    Attributes:
        decoding: how they were made.
        responses: ``responses[seed][prompt]``.
    """

    decoding: Decoding
    responses: Sequence[Sequence[Response]]


def respond(
    model: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    decoding: Decoding,
    *,
    seeds: int,
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Responses:
    """Respond to every prompt once a seed (once in all when greedy).

    The random numbers depend on the seed and the place of the prompt alone, so all models are
    decoded with the same ones, in batches of any size.
    """
    rounds = range(1 if decoding.greedy else seeds)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    queue = [(i, seed) for i in order for seed in rounds]  # a prompt is read once for all seeds
    sampler = decoding_sampler(
        decoding,
        [f"{seed}:{i}" for i, seed in queue],
        seed=seed_of("evaluate"),
        device=model.device,
    )
    made = generate(
        model,
        [prompts[i] for i, _ in queue],
        sampler,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        on_finished=on_batch,
    )
    answers = dict(zip(queue, made, strict=True))
    return Responses(decoding, [[answers[i, s] for i in range(len(prompts))] for s in rounds])


def score_responses(
    made: Responses,
    examples: Sequence[Example],
    model: LanguageModel,
    teacher: LanguageModel,
    *,
    vocabulary_size: int,
    batch_size: int,
) -> dict[str, Sample | None]:
    """Metrics of responses, a value for every prompt and generation seed.

    Args:
        made: the responses.
        examples: the prompts they answer, with references.
        model: who made them.
        teacher: whose likelihood of them is reported.
        vocabulary_size: tokens shared by both.
        batch_size: rows of one forward pass.

    Returns:
        ``rouge_l``, ``exact_match`` (0 to 100, None without references), ``teacher_nll`` (nats a
        token), ``reverse_kl`` (Monte-Carlo estimate, nats a token; only for plain samples, whose
        policy is the model itself), ``response_tokens``, ``ended`` (share).
    """
    lengths = _table(made, lambda i, r: len(r.ids))
    teacher_log_probs = _log_probs(teacher, made, examples, vocabulary_size, batch_size)
    nll = Sample(-teacher_log_probs, lengths)
    reverse_kl = None
    if made.decoding == Decoding():
        own = _log_probs(model, made, examples, vocabulary_size, batch_size)
        reverse_kl = Sample(own - teacher_log_probs, lengths)
    return {
        **overlap(made, examples, model),
        "teacher_nll": nll,
        "reverse_kl": reverse_kl,
        "response_tokens": Sample(lengths),
        "ended": Sample(_table(made, lambda i, r: float(r.ended))),
    }


def overlap(
    made: Responses, examples: Sequence[Example], model: LanguageModel
) -> dict[str, Sample | None]:
    """Rouge-L and exact match with the references; None where prompts have no references."""
    if not all(example.references for example in examples):
        return {"rouge_l": None, "exact_match": None}
    texts = [[text_of(model, r) for r in round_] for round_ in made.responses]

    def per_prompt(metric: Callable[[str, Sequence[str]], float]) -> Sample:
        values = [
            [metric(text, e.references) for text, e in zip(round_, examples, strict=True)]
            for round_ in texts
        ]
        return Sample(np.asarray(values, dtype=np.float64).T)

    return {"rouge_l": per_prompt(rouge_l), "exact_match": per_prompt(exact_match)}


def text_of(model: LanguageModel, response: Response) -> str:
    """A response as text, without special tokens."""
    text = model.tokenizer.decode(list(response.ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip()


def _table(made: Responses, value: Callable[[int, Response], float]) -> np.ndarray:
    rounds = [[value(i, r) for i, r in enumerate(round_)] for round_ in made.responses]
    return np.asarray(rounds, dtype=np.float64).T


def _log_probs(
    model: LanguageModel,
    made: Responses,
    examples: Sequence[Example],
    vocabulary_size: int,
    batch_size: int,
) -> np.ndarray:
    """``log pi(response | prompt)`` of each, nats: [prompts, seeds]."""
    rows = [
        Row(example.prompt_ids, response.ids, response.ended)
        for round_ in made.responses
        for example, response in zip(examples, round_, strict=True)
    ]
    totals = response_log_probs(model, rows, vocabulary_size=vocabulary_size, batch_size=batch_size)
    return totals.numpy().reshape(len(made.responses), len(examples)).T
