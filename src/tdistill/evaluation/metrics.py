"""Scores of one response against its references, computed as MiniLLM computes them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tdistill.errors import InvalidValueError


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return the Rouge-L F-measure of a response, the best over its references.

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
