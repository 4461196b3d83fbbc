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
from tdistill.evaluation.policy import OwnStates, read_own_states
from tdistill.evaluation.served import AnyModel, ServedTeacher
from tdistill.evaluation.verifier import Verifier
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.generation import Response, decoding_sampler, generate, seed_of


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
    model: AnyModel,
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
    names = [f"{seed}:{i}" for i, seed in queue]
    asked = [prompts[i] for i, _ in queue]
    if isinstance(model, ServedTeacher):
        pairs = list(zip(asked, names, strict=True))
        made = model.respond(pairs, decoding, max_new_tokens=max_new_tokens, on_finished=on_batch)
    else:
        made = generate(
            model,
            asked,
            decoding_sampler(decoding, names, seed=seed_of("evaluate"), device=model.device),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            on_finished=on_batch,
        )
    answers = dict(zip(queue, made, strict=True))
    return Responses(decoding, [[answers[i, s] for i in range(len(prompts))] for s in rounds])


def score_responses(
    made: Responses,
    examples: Sequence[Example],
    model: AnyModel,
    teacher: AnyModel,
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
        response), ``response_tokens``, ``ended`` and ``repetition`` (shares). Beside a served
        teacher ``drawn_reverse_kl``, ``drawn_sequence_reverse_kl`` and ``own_kl_with_rest`` in
        place of the divergences over the vocabulary, which are None.
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
    tokens = states.tokens.reshape(shape).T
    judged = {"rouge_l": overlap(made, examples, model)}
    if verifier is not None:
        judged[verifier.metric] = verified(made, examples, model, verifier)
    return {
        **judged,
        **_of_states(states, shape, samples=not made.decoding.greedy),
        "response_tokens": Sample(tokens),
        "ended": Sample(_table(made, lambda i, r: float(r.ended))),
        "repetition": Sample(_table(made, lambda i, r: repetition(r.ids))),
    }


def _of_states(
    states: OwnStates, shape: tuple[int, int], *, samples: bool
) -> dict[str, Sample | None]:
    """What was read at the states of responses of that many seeds and prompts."""
    tokens = states.tokens.reshape(shape).T
    at_place = {name: _by_prompt(sums, shape) for name, sums in states.by_place.items()}
    sums = {name: found.sum(axis=-1) for name, found in at_place.items()}
    found: dict[str, Sample | None] = dict.fromkeys(
        ("teacher_nll", "reverse_kl", "sequence_reverse_kl", "own_forward_kl", "entropy")
    )
    found["teacher_nll"] = Sample(-sums["teacher_log_prob"], tokens)
    if "entropy" in sums:
        found["entropy"] = Sample(sums["entropy"], tokens)
    for drawn in ("", "drawn_"):
        reverse_kl = sums.get(f"{drawn}reverse_kl") if samples else None
        if reverse_kl is not None:
            found[f"{drawn}reverse_kl"] = Sample(reverse_kl, tokens)
            found[f"{drawn}sequence_reverse_kl"] = Sample(reverse_kl)
    for name in {"forward_kl", "kl_with_rest"} & at_place.keys():
        steps = _by_prompt(states.tokens_by_place, shape)
        found[f"own_{name}"] = Sample(sums[name], tokens)
        found |= metrics_by_place(f"own_{name}", at_place[name], steps)
    return found


def _by_prompt(sums: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Sums of rows, seed by seed, as [prompts, seeds, places]."""
    return np.moveaxis(sums.reshape(*shape, -1), 0, 1)


def overlap(made: Responses, examples: Sequence[Example], model: AnyModel) -> Sample | None:
    """Rouge-L with the references; None where prompts have no references."""
    if not all(example.references for example in examples):
        return None
    references = [tuple(map(without_reasoning, e.references)) for e in examples]
    return _of_texts(made, model, lambda text, i: rouge_l(text, references[i]))


def verified(
    made: Responses, examples: Sequence[Example], model: AnyModel, verifier: Verifier
) -> Sample:
    """How right each response is, from 0 to 1."""
    return _of_texts(made, model, lambda text, i: verifier(text, examples[i]))


def quality(
    made: Responses, examples: Sequence[Example], model: AnyModel, verifier: Verifier | None
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


def _of_texts(made: Responses, model: AnyModel, value: Callable[[str, int], float]) -> Sample:
    """A value of what each response answers, after its reasoning, and of its prompt's number."""
    return Sample(_table(made, lambda i, r: value(without_reasoning(text_of(model, r)), i)))


def text_of(model: AnyModel, response: Response) -> str:
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
