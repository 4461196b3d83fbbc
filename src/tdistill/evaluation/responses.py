"""Scores of a model's own responses, in every decoding: overlap, likelihood, length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tdistill.data.examples import Example
from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.metrics import rouge_l
from tdistill.evaluation.verifier import Verifier
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.generation import Response, decoding_sampler, generate, seed_of
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import alike, lay_out
from tdistill.models.scores import step_scores


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
    verifier: Verifier | None = None,
) -> dict[str, Sample | None]:
    """Metrics of responses, a value for every prompt and generation seed.

    Args:
        made: the responses.
        examples: the prompts they answer, with references.
        model: who made them.
        teacher: whose likelihood of them is reported.
        vocabulary_size: tokens shared by both.
        batch_size: rows of one forward pass.
        verifier: says which responses are right.

    Returns:
        ``rouge_l`` (0 to 100, None without references), that of a verifier, ``teacher_nll`` (nats a
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
    judged = {"rouge_l": overlap(made, examples, model)}
    if verifier is not None:
        judged[verifier.metric] = verified(made, examples, model, verifier)
    return {
        **judged,
        "teacher_nll": nll,
        "reverse_kl": reverse_kl,
        "response_tokens": Sample(lengths),
        "ended": Sample(_table(made, lambda i, r: float(r.ended))),
    }


def overlap(made: Responses, examples: Sequence[Example], model: LanguageModel) -> Sample | None:
    """Rouge-L with the references; None where prompts have no references."""
    if not all(example.references for example in examples):
        return None
    return _of_texts(made, model, lambda text, i: rouge_l(text, examples[i].references))


def verified(
    made: Responses, examples: Sequence[Example], model: LanguageModel, verifier: Verifier
) -> Sample:
    """How right each response is, from 0 to 1."""
    return _of_texts(made, model, lambda text, i: verifier(text, examples[i]))


def quality(
    made: Responses, examples: Sequence[Example], model: LanguageModel, verifier: Verifier | None
) -> Sample | None:
    """What a decoding is chosen by: the verifier's verdict where there is one, else Rouge-L."""
    if verifier is None:
        return overlap(made, examples, model)
    return verified(made, examples, model, verifier)


def _of_texts(made: Responses, model: LanguageModel, value: Callable[[str, int], float]) -> Sample:
    """A value of each response's text and of the number of its prompt."""
    return Sample(_table(made, lambda i, r: value(text_of(model, r), i)))


def text_of(model: LanguageModel, response: Response) -> str:
    """A response as text, without special tokens."""
    text = model.tokenizer.decode(list(response.ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip()


def _table(made: Responses, value: Callable[[int, Response], float]) -> np.ndarray:
    rounds = [[value(i, r) for i, r in enumerate(round_)] for round_ in made.responses]
    return np.asarray(rounds, dtype=np.float64).T


@torch.no_grad()
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
    order = alike(rows)
    totals = np.zeros(len(rows))
    for first in range(0, len(rows), batch_size):
        group = order[first : first + batch_size]
        laid = lay_out([rows[i] for i in group], model.pad_id).to(model.device)
        scores = step_scores(model.model, laid, vocabulary_size=vocabulary_size)
        actions = torch.tensor([a for i in group for a in rows[i].response_ids])
        actions = actions.to(model.device)
        normaliser = scores.log_normaliser(chunk_size=256)
        chosen = scores.at(actions, torch.arange(len(actions), device=model.device))
        lengths = [len(rows[i].response_ids) for i in group]
        parts = (chosen - normaliser).double().split(lengths)
        totals[group] = torch.stack([part.sum() for part in parts]).cpu().numpy()
    return totals.reshape(len(made.responses), len(examples)).T
