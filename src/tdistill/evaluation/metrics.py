"""Scores of the responses to one prompt: pure functions of texts, tokens and verdicts."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from tdistill.errors import InvalidValueError


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """The Rouge-L F-measure of a response, the best over its references, as MiniLLM computes it.

    The rouge-score package tokenises (lower case, runs of ``a-z0-9``) and stems words of more than
    three letters (Porter). Text without such characters, an empty response included, scores 0.

    Args:
        prediction: the response, decoded without special tokens.
        references: the accepted responses of the same prompt, at least one.

    Returns:
        A score from 0 to 100.

    Raises:
        InvalidValueError: ``references`` is empty or a bare string.

    Reference:
        Lin 2004, "ROUGE"; Gu et al. 2024, "MiniLLM", ``rouge_metric.py``.

    >>> round(rouge_l("the cat sat", ["the cat sat down"]), 2)
    85.71
    """
    _check_references(references)
    scorer = _rouge_scorer()
    return 100.0 * max(
        float(scorer.score(target=reference, prediction=prediction)["rougeL"].fmeasure)
        for reference in references
    )


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that at least one of k samples is right: ``1 - C(n - c, k) / C(n, k)``.

    Unbiased for k independent samples, where ``1 - (1 - c / n)^k`` is too low.

    Args:
        samples: n, drawn for one prompt, at least k.
        right: c, those of them that are right.
        k: samples that may be tried.

    Reference:
        Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, (1).

    Example:
        >>> pass_at_k(5, 2, 1), pass_at_k(5, 2, 2), pass_at_k(5, 0, 5)
        (0.4, 0.7, 0.0)
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of a response's n-grams that it holds already; 0 where it is too short for any.

    Reference:
        Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", arXiv 1908.04319
        (seq-rep-n).

    Example:
        >>> repetition([1, 2, 1, 2, 1, 2, 1])  # 1212, 2121, 1212, 2121
        0.5
    """
    ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str):
        raise InvalidValueError(
            "references: expected a list of strings, found one string (its letters would be taken "
            "for references); write [reference]"
        )
    if len(references) == 0:
        raise InvalidValueError(
            "references: expected at least one, found none; leave the prompt out of the score"
        )


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
