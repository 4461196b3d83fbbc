"""How alike the responses of a model are, to each other: from their words alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

Words = Sequence[str]
"""The words of one response."""

_NO_MATCH = 0.1  # counted for no match at all, as Texygen's smoothing does


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, without what stands between them.

    A run of letters is a word also in scripts that write none apart, such as Chinese.

    Example:
        >>> words_of("It's a well-known  Cat!")
        ["it's", 'a', 'well', 'known', 'cat']
    """
    return re.findall(r"\w+(?:'\w+)*", text.lower())


def diversity(responses: Sequence[Words]) -> dict[str, float]:
    """Every measure of all responses together.

    Returns:
        ``word_entropy`` and ``bigram_entropy`` (nats), ``distinct_1`` to ``distinct_3`` (shares),
        ``different_words`` (a count), ``self_bleu`` (0 to 1; high where responses are alike).
    """
    return {
        "word_entropy": ngram_entropy(responses, 1),
        "bigram_entropy": ngram_entropy(responses, 2),
        **{f"distinct_{n}": distinct_ngrams(responses, n) for n in (1, 2, 3)},
        "different_words": float(len({word for words in responses for word in words})),
        "self_bleu": self_bleu(responses),
    }


def ngram_entropy(responses: Sequence[Words], n: int) -> float:
    """Entropy of the n-grams of all responses together, nats; 0 where there are none.

    The plug-in estimate ``-sum c/N log c/N``. It is too low, by about (K - 1) / 2N for K kinds of
    n-grams among N (Miller 1955), and never above log N: hold it against that of as many responses
    to the same prompts, of like length, and nothing else.

    Args:
        responses: words of each.
        n: of the n-grams; none reaches over the end of a response.

    Example:
        >>> round(ngram_entropy([["a", "b"], ["a", "c"]], 1), 4)  # 1/2, 1/4, 1/4
        1.0397
    """
    counts = Counter(ngram for words in responses for ngram in _ngrams(words, n))
    total = counts.total()
    return math.fsum(-c / total * math.log(c / total) for c in counts.values())


def distinct_ngrams(responses: Sequence[Words], n: int) -> float:
    """Distinct-n: different n-grams of all responses, a share of all of them; 0 where none is.

    It falls as there is more text. Reference: Li et al. 2016, arXiv 1510.03055.

    Example:
        >>> distinct_ngrams([["a", "b"], ["a", "c"]], 1)
        0.75
    """
    found = [ngram for words in responses for ngram in _ngrams(words, n)]
    return len(set(found)) / len(found) if found else 0.0


def self_bleu(responses: Sequence[Words], *, order: int = 4) -> float:
    """Mean BLEU of each response against all the others, 0 to 1; 1 where all are the same.

    As Texygen has it: the most that any other response holds of an n-gram is what may match, no
    match counts as 0.1, and the nearest length of another sets the brevity penalty. Exact, in time
    that grows with the number of responses. It rises with that number: compare equal ones.

    Args:
        responses: words of each.
        order: of the longest n-grams.

    Reference:
        Zhu et al. 2018, "Texygen", arXiv 1802.01886.

    Example:
        >>> self_bleu([["a", "b", "c", "d"]] * 2), self_bleu([["a"], ["b"]])
        (1.0, 0.0)
    """
    if len(responses) < 2:
        return 0.0
    counts = [[Counter(_ngrams(r, n)) for r in responses] for n in range(1, order + 1)]
    most = [_two_highest(of_order) for of_order in counts]
    lengths = Counter(map(len, responses))
    scores = []
    for i, words in enumerate(responses):
        own = [of_order[i] for of_order in counts]
        matches = [_matches(c, highest) for c, highest in zip(own, most, strict=True)]
        if matches[0] == 0:
            scores.append(0.0)
            continue
        shares = [(m or _NO_MATCH) / max(1, c.total()) for m, c in zip(matches, own, strict=True)]
        others = [length for length, count in lengths.items() if count > (length == len(words))]
        nearest = min(others, key=lambda length: (abs(length - len(words)), length))
        brevity = min(0.0, 1 - nearest / len(words))
        scores.append(math.exp(brevity + fmean(map(math.log, shares))))
    return fmean(scores)


def distinct_responses(responses: Sequence[Words]) -> float:
    """Different responses to one prompt, as a share of its responses.

    Example:
        >>> distinct_responses([["a"], ["a"], ["b"], ["c"]])
        0.75
    """
    return len({tuple(words) for words in responses}) / len(responses)


def _ngrams(words: Words, n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _two_highest(
    counts: Sequence[Counter[tuple[str, ...]]],
) -> dict[tuple[str, ...], tuple[int, int]]:
    """The highest and the second highest count that a response has of each n-gram."""
    most: dict[tuple[str, ...], tuple[int, int]] = {}
    for of_response in counts:
        for ngram, count in of_response.items():
            first, second = most.get(ngram, (0, 0))
            most[ngram] = (max(first, count), max(second, min(first, count)))
    return most


def _matches(own: Counter[tuple[str, ...]], most: dict[tuple[str, ...], tuple[int, int]]) -> int:
    """N-grams of a response that another holds; the highest count may be its own."""
    return sum(min(c, most[g][1] if c == most[g][0] else most[g][0]) for g, c in own.items())
