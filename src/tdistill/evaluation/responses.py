"""Scores of a model's own responses: overlap, verdicts, likelihood, divergence, length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tdistill.data import Example
from tdistill.data.thinking import without_reasoning
from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.metrics import pass_at_k, repetition, rouge_l
from tdistill.evaluation.places import metrics_by_place
from tdistill.evaluation.policy import read_own_states
from tdistill.evaluation.verifier import Verifier
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.generation import Response, decoding_sampler, generate, seed_of
from tdistill.models.language_model import LanguageModel


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
        ``rouge_l`` (0 to 100, None without references), that of a verifier; in nats a token
        ``teacher_nll``, ``reverse_kl`` (of the policy that sampled from the teacher; None greedily,
        where it is the ``teacher_nll``), ``own_forward_kl`` (of the teacher from the model, where
        the model went) and ``entropy`` (see `OwnStates`); ``sequence_reverse_kl`` (nats a
        response), ``response_tokens``, ``ended`` and ``repetition`` (shares).
    """
    states = read_own_states(
        _rows(made, examples),
        made.decoding,
        model,
        teacher,
        vocabulary_size=vocabulary_size,
        batch_size=batch_size,
    )
    shape = len(made.responses), len(examples)
    tokens, nll, entropy, reverse_kl, forward_kl = (
        sums.reshape(shape).T
        for sums in (
            states.tokens,
            -states.teacher_log_prob,
            states.entropy,
            states.reverse_kl,
            states.forward_kl,
        )
    )
    judged = {"rouge_l": overlap(made, examples, model)}
    if verifier is not None:
        judged[verifier.metric] = verified(made, examples, model, verifier)
    samples = not made.decoding.greedy
    return {
        **judged,
        "teacher_nll": Sample(nll, tokens),
        "reverse_kl": Sample(reverse_kl, tokens) if samples else None,
        "sequence_reverse_kl": Sample(reverse_kl) if samples else None,
        "own_forward_kl": Sample(forward_kl, tokens),
        **metrics_by_place(
            "own_forward_kl",
            *(
                np.moveaxis(sums.reshape(*shape, -1), 0, 1)
                for sums in (states.forward_kl_by_place, states.tokens_by_place)
            ),
        ),
        "entropy": Sample(entropy, tokens),
        "response_tokens": Sample(tokens),
        "ended": Sample(_table(made, lambda i, r: float(r.ended))),
        "repetition": Sample(_table(made, lambda i, r: repetition(r.ids))),
    }


def overlap(made: Responses, examples: Sequence[Example], model: LanguageModel) -> Sample | None:
    """Rouge-L with the references; None where prompts have no references."""
    if not all(example.references for example in examples):
        return None
    references = [tuple(map(without_reasoning, e.references)) for e in examples]
    return _of_texts(made, model, lambda text, i: rouge_l(text, references[i]))


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


def pass_metrics(verdicts: Sample, ks: Sequence[int]) -> dict[str, Sample]:
    """``pass_at_k`` for each k that there are samples for; a response passes with a verdict of 1.

    Args:
        verdicts: of the samples of each prompt.
        ks: numbers of samples that may be tried.
    """
    samples = verdicts.values.shape[1]
    right = (verdicts.values == 1.0).sum(axis=1)
    return {
        f"pass_at_{k}": Sample(np.asarray([pass_at_k(samples, int(c), k) for c in right]))
        for k in ks
        if k <= samples
    }


def _of_texts(made: Responses, model: LanguageModel, value: Callable[[str, int], float]) -> Sample:
    """A value of what each response answers, after its reasoning, and of its prompt's number."""
    return Sample(_table(made, lambda i, r: value(without_reasoning(text_of(model, r)), i)))


def text_of(model: LanguageModel, response: Response) -> str:
    """A response as text, without special tokens."""
    text = model.tokenizer.decode(list(response.ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip()


def _table(made: Responses, value: Callable[[int, Response], float]) -> np.ndarray:
    rounds = [[value(i, r) for i, r in enumerate(round_)] for round_ in made.responses]
    return np.asarray(rounds, dtype=np.float64).T


def _rows(made: Responses, examples: Sequence[Example]) -> list[Row]:
    """The responses as rows, seed by seed."""
    return [
        Row(example.prompt_ids, response.ids, response.ended)
        for round_ in made.responses
        for example, response in zip(examples, round_, strict=True)
    ]
