"""Answers of a vLLM-compatible server, checked: what is wrong in any way never becomes evidence.

The forms are those of ``/v1/completions`` with token ids in and out (``return_token_ids``,
``return_tokens_as_token_ids``) as vLLM 0.32 gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tdistill.errors import excerpt
from tdistill.evidence.rows import Row
from tdistill.teacher.listing.steps import Answer, Asked, Asking, Step, listed_step

_TOKEN = "token_id:"


class WrongAnswer(Exception):
    """An answer that no second try will mend; the text says what was expected and found."""


def request_for(asked: Asked, how: Asking, model: str) -> dict[str, Any]:
    """The request for one sampled response.

    Every setting is sent: a server fills in what its model's generation config says otherwise.
    """
    return {
        **_plain(model),
        "prompt": list(asked.prompt),
        "seed": asked.seed,
        "temperature": how.temperature,
        "top_p": how.sampling_top_p,
        "max_tokens": how.max_new_tokens,
        "logprobs": how.listed,
        "stop_token_ids": list(how.end_ids),
    }


def request_to_read(row: Row, how: Asking, model: str) -> dict[str, Any]:
    """The request for what is listed along a given response; one token is sampled in vain."""
    return {
        **_plain(model),
        "prompt": [*row.prompt_ids, *row.response_ids],
        "max_tokens": 1,
        "prompt_logprobs": how.listed,
    }


def _plain(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "n": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
    }


def response_in(found: Any, asked: Asked, how: Asking, model: str) -> Answer:
    """The sampled response of an answer.

    Raises:
        WrongAnswer: it is not what was asked for.
    """
    choice = _choice(found, asked.prompt, model)
    ids = _ids(choice.get("token_ids"), how.vocabulary_size, "token_ids")
    listed = choice.get("logprobs")
    tops = listed.get("top_logprobs") if isinstance(listed, Mapping) else None
    named = isinstance(tops, Sequence) and not isinstance(tops, str)
    entries = [_by_name(top) for top in tops] if named and tops is not None else []
    return checked_response(ids, choice.get("finish_reason"), entries, how)


def checked_response(
    ids: tuple[int, ...], reason: Any, tops: Sequence[dict[int, float]], how: Asking
) -> Answer:
    """A response that ends as it should, with what was listed at each of its steps.

    Args:
        ids: its tokens.
        reason: why it ended: ``stop`` or ``length``.
        tops: log-probabilities by token, nats, for each step.
        how: how it was asked for.

    Raises:
        WrongAnswer: it is not what was asked for.
    """
    most, ended = how.max_new_tokens, ids[-1] in how.end_ids
    if reason not in ("stop", "length"):
        raise WrongAnswer(f"expected a response that stops or is cut, found one ended by {reason}")
    if len(ids) > most or (not ended and (reason == "stop" or len(ids) < most)):
        raise WrongAnswer(
            f"expected a response that ends with one of the tokens {list(how.end_ids)} or has "
            f"max_new_tokens = {most} tokens, found {len(ids)} tokens, the last {ids[-1]}, ended "
            f"by {reason}; the model ends elsewhere there, or its --max-model-len is too small"
        )
    if any(token in how.end_ids for token in ids[:-1]):
        raise WrongAnswer("expected a response without an end token inside, found one with it")
    if len(tops) != len(ids):
        raise WrongAnswer(
            f"expected the log-probabilities of {how.listed} tokens at each of {len(ids)} steps, "
            "found none or others; ask a server that gives logprobs (vllm serve)"
        )
    return Answer(ids, ended, checked_steps(ids, tops, how))


def checked_steps(
    ids: Sequence[int], tops: Sequence[dict[int, float]], how: Asking
) -> tuple[Step, ...]:
    """What was listed at the steps of a response.

    Raises:
        WrongAnswer: it is no list of log-probabilities as asked for.
    """
    try:
        return tuple(
            listed_step(entries, token, how.listed, how.vocabulary_size)
            for entries, token in zip(tops, ids, strict=True)
        )
    except ValueError as error:
        raise WrongAnswer(str(error)) from error


def steps_in(found: Any, row: Row, how: Asking, model: str) -> tuple[Step, ...]:
    """What an answer lists along a given response.

    Raises:
        WrongAnswer: it is not what was asked for.
    """
    whole = (*row.prompt_ids, *row.response_ids)
    choice = _choice(found, whole, model)
    listed = choice.get("prompt_logprobs")
    if not isinstance(listed, Sequence) or len(listed) != len(whole):
        raise WrongAnswer(
            f"expected prompt_logprobs at each of {len(whole)} tokens, found none or others; ask a "
            "server that gives them (vllm serve)"
        )
    tops = [_by_id(top) for top in listed[len(row.prompt_ids) :]]
    return checked_steps(row.response_ids, tops, how)


def texts_in(found: Any, asked: Sequence[int], model: str) -> dict[int, str]:
    """How the server's tokenizer writes the tokens of a prompt, but for its first.

    Raises:
        WrongAnswer: the answer is not to that prompt.
    """
    choice = _choice(found, asked, model)
    texts = {}
    for token, top in zip(asked, choice.get("prompt_logprobs") or (), strict=False):
        entry = top.get(str(token)) if isinstance(top, Mapping) else None
        text = entry.get("decoded_token") if isinstance(entry, Mapping) else None
        if isinstance(text, str):
            texts[token] = text
    return texts


def _choice(found: Any, prompt: Sequence[int], model: str) -> Mapping[str, Any]:
    """The only choice of an answer to a prompt by a model."""
    if not isinstance(found, Mapping):
        raise WrongAnswer(f"expected an object, found {excerpt(found)}")
    if found.get("model", model) != model:
        raise WrongAnswer(f"expected an answer of model {model}, found {excerpt(found['model'])}")
    choices = found.get("choices")
    if not isinstance(choices, Sequence) or len(choices) != 1:
        raise WrongAnswer(f"expected one choice, found {excerpt(choices)}")
    (choice,) = choices
    if not isinstance(choice, Mapping):
        raise WrongAnswer(f"expected a choice with fields, found {excerpt(choice)}")
    read = choice.get("prompt_token_ids")
    if read is not None and read != list(prompt):
        others = f"{len(read)} others" if isinstance(read, list) else excerpt(read)
        raise WrongAnswer(
            f"expected an answer to the {len(prompt)} tokens that were sent, found one to "
            f"{others}; the server changes prompts"
        )
    return choice


def _ids(found: Any, vocabulary: int, name: str) -> tuple[int, ...]:
    whole = isinstance(found, Sequence) and len(found) > 0
    if not whole or not all(type(x) is int and 0 <= x < vocabulary for x in found):
        raise WrongAnswer(
            f"expected {name}: ids below {vocabulary}, at least one; found {excerpt(found)}; the "
            "server must know return_token_ids, and have the tokenizer of teacher.path"
        )
    return tuple(found)


def _by_name(top: Any) -> dict[int, float]:
    """Entries named ``token_id:149``."""
    try:
        return {int(name.removeprefix(_TOKEN)): float(value) for name, value in top.items()}
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise WrongAnswer(
            f"expected log-probabilities by token ids, found {excerpt(top)}; the server must know "
            "return_tokens_as_token_ids"
        ) from error


def _by_id(top: Any) -> dict[int, float]:
    """Entries named ``149``, with rank and text."""
    try:
        return {int(name): float(entry["logprob"]) for name, entry in top.items()}
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise WrongAnswer(
            f"expected log-probabilities by token ids, found {excerpt(top)}"
        ) from error
