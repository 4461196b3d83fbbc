"""Measures of diversity, against values by hand and against the definition written out."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest

from tdistill.evaluation.diversity import (
    distinct_ngrams,
    distinct_responses,
    diversity,
    ngram_entropy,
    self_bleu,
    words_of,
)

CATS = [words_of(text) for text in ("the cat sat", "the cat ran", "a dog")]
EMPTY: list[list[str]] = [[], []]


def test_words_are_without_case_and_punctuation():
    assert words_of("The cat's well-known, 3 DOGS!\n") == [
        "the",
        "cat's",
        "well",
        "known",
        "3",
        "dogs",
    ]
    assert words_of(" ... ") == []
    assert words_of("Straße für Él") == ["straße", "für", "él"]


def test_entropies_by_hand():
    # the 2/8, cat 2/8, and four words 1/8 each.
    assert ngram_entropy(CATS, 1) == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(8))
    # the-cat 2/5, and three bigrams 1/5 each; none from one response into the next.
    expected = 0.4 * math.log(2.5) + 0.6 * math.log(5)
    assert ngram_entropy(CATS, 2) == pytest.approx(expected)
    assert ngram_entropy([["a"] * 9], 1) == 0.0
    assert ngram_entropy(EMPTY, 1) == 0.0


def test_distinct_shares_by_hand():
    assert distinct_ngrams(CATS, 1) == pytest.approx(6 / 8)
    assert distinct_ngrams(CATS, 2) == pytest.approx(4 / 5)
    assert distinct_ngrams(CATS, 3) == pytest.approx(2 / 2)
    assert distinct_ngrams(EMPTY, 1) == 0.0


def test_the_bias_of_the_entropy_is_as_the_docstring_says():
    """Of 16 kinds, among 400: too low by 15/800."""
    chance, means = random.Random(0), []
    for _ in range(200):
        drawn = [[str(chance.randrange(16))] for _ in range(400)]
        means.append(ngram_entropy(drawn, 1))
    bias = math.log(16) - sum(means) / len(means)
    assert bias == pytest.approx(15 / 800, rel=0.15)


def test_self_bleu_by_hand():
    # "the cat sat": 2 of 3 words, 1 of 2 bigrams, 0 of 1 trigrams, no 4-grams; no brevity penalty.
    # "the cat ran" likewise; "a dog" has no word in common.
    one = math.exp(sum(math.log(x) for x in (2 / 3, 1 / 2, 0.1, 0.1)) / 4)
    assert self_bleu(CATS) == pytest.approx(2 * one / 3)


def test_self_bleu_has_a_brevity_penalty_and_clips_counts():
    short, long = ["a"] * 2, ["a"] * 5
    clipped = math.exp(sum(math.log(x) for x in (2 / 5, 1 / 4, 0.1 / 3, 0.1 / 2)) / 4)
    brief = math.exp(1 - 5 / 2) * math.exp(sum(math.log(x) for x in (1, 1, 0.1, 0.1)) / 4)
    assert self_bleu([short, long]) == pytest.approx((clipped + brief) / 2)


def plain_self_bleu(responses: list[list[str]]) -> float:
    """Each against all others, one by one, as Texygen does with NLTK (`method1`)."""
    scores = []
    for i, words in enumerate(responses):
        others, logs = [r for j, r in enumerate(responses) if j != i], []
        for n in range(1, 5):
            own = Counter(tuple(words[k : k + n]) for k in range(len(words) - n + 1))
            most: Counter[tuple[str, ...]] = Counter()
            for other in others:
                most |= Counter(tuple(other[k : k + n]) for k in range(len(other) - n + 1))
            matches = (own & most).total()
            if n == 1 and matches == 0:
                break
            logs.append(math.log((matches or 0.1) / max(1, own.total())))
        else:
            nearest = min((abs(len(o) - len(words)), len(o)) for o in others)[1]
            penalty = 1 if len(words) > nearest else math.exp(1 - nearest / len(words))
            scores.append(penalty * math.exp(sum(logs) / 4))
            continue
        scores.append(0.0)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("kinds", [2, 5, 40])
def test_self_bleu_is_that_of_the_definition(kinds: int):
    chance = random.Random(kinds)
    drawn = [[str(chance.randrange(kinds)) for _ in range(chance.randrange(12))] for _ in range(30)]
    assert self_bleu(drawn) == pytest.approx(plain_self_bleu(drawn), rel=1e-12)
    assert 0 < self_bleu(drawn) < 1


def test_self_bleu_of_what_cannot_be_compared():
    assert self_bleu([["a", "b"]]) == self_bleu(EMPTY) == self_bleu([["a"], []]) == 0.0


def test_different_responses_to_a_prompt():
    assert distinct_responses([["a"], ["a"]]) == 0.5
    assert distinct_responses([["a", "b"], ["a"], ["b", "a"]]) == 1.0


def test_all_measures_together():
    found = diversity(CATS)
    assert found["different_words"] == 6
    assert found["distinct_2"] == distinct_ngrams(CATS, 2)
    assert found["bigram_entropy"] == ngram_entropy(CATS, 2) != found["word_entropy"]
    assert set(diversity(EMPTY)) == set(found)


@pytest.mark.parametrize("measure", [lambda r: ngram_entropy(r, 2), self_bleu], ids=["h", "bleu"])
def test_the_order_of_responses_does_not_matter(measure: Callable[[list[list[str]]], float]):
    assert measure(CATS) == pytest.approx(measure(CATS[::-1]), rel=1e-15)
