from __future__ import annotations

from itertools import combinations

import pytest

from tdistill.errors import InvalidValueError
from tdistill.evaluation.metrics import pass_at_k, repetition, rouge_l


@pytest.mark.parametrize(
    ("prediction", "reference", "precision", "recall"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1, 1),
        ("the cat sat", "the cat sat on the mat", 3 / 3, 3 / 6),
        # The longest common subsequence is "the dog barked": order counts, neighbourhood does not.
        ("the big dog loudly barked", "barked the dog barked", 3 / 5, 3 / 4),
        ("a b c d", "d c b a", 1 / 4, 1 / 4),
        # Case and punctuation are dropped; a hyphen separates two words.
        ("Well-known, FACT!", "well known fact", 1, 1),
        # Porter stems words of more than three letters: running = runs, but ups is not up.
        ("running ups", "runs up", 1 / 2, 1 / 2),
        ("connected connections", "connect connecting", 1, 1),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_common_subsequence(
    prediction: str, reference: str, precision: float, recall: float
) -> None:
    total = precision + recall
    expected = 100 * 2 * precision * recall / total if total else 0.0
    assert rouge_l(prediction, [reference]) == pytest.approx(expected, abs=1e-9)


def test_rouge_l_takes_the_best_reference() -> None:
    references = ["nothing alike here", "the cat sat", "the cat"]
    assert rouge_l("the cat sat", references) == 100.0
    assert rouge_l("the cat sat", references[::-1]) == 100.0
    assert rouge_l("the cat sat", references[:1]) == 0.0


@pytest.mark.parametrize(("prediction", "reference"), [("", "a"), ("a", ""), ("", ""), ("é", "é")])
def test_text_without_latin_letters_or_digits_scores_nothing(
    prediction: str, reference: str
) -> None:
    assert rouge_l(prediction, [reference]) == 0.0


def test_a_score_needs_a_list_of_references() -> None:
    with pytest.raises(InvalidValueError, match="at least one"):
        rouge_l("a", [])
    with pytest.raises(InvalidValueError, match="found one string"):
        rouge_l("a", "a")


def test_a_mean_over_prompts_is_what_minillm_reports() -> None:
    # The sum of 0-1 scores times 100 over their number, by hand: (1 + 2/3 + 0) / 3.
    predictions = ["Yes.", "cats purr", "no idea"]
    references = [["yes", "no"], ["cats"], ["blue"]]
    pairs = list(zip(predictions, references, strict=True))
    assert sum(rouge_l(*pair) for pair in pairs) / 3 == pytest.approx(100 * 5 / 9)


@pytest.mark.parametrize(("samples", "right"), [(1, 0), (1, 1), (5, 2), (6, 1), (6, 5), (4, 4)])
def test_pass_at_k_is_the_share_of_choices_with_a_right_sample(samples: int, right: int) -> None:
    for k in range(1, samples + 1):
        choices = list(combinations(range(samples), k))
        share = sum(any(i < right for i in choice) for choice in choices) / len(choices)
        assert pass_at_k(samples, right, k) == pytest.approx(share)


def test_repetition_is_of_n_grams_within_one_response() -> None:
    assert repetition([7] * 8) == pytest.approx(4 / 5)  # five 4-grams, one of them different
    assert repetition(range(20)) == 0.0
    assert repetition([1, 2, 3]) == repetition([]) == 0.0
    assert repetition([1, 2, 1, 2], n=2) == pytest.approx(1 / 3)
