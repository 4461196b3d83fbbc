"""What each metric is called, its unit, which way is better, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tdistill.evaluation.config import HIGHER, LOWER
from tdistill.report.result import Estimate

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Measure:
    """A metric as readers see it; ``better`` is +1 (higher), -1 (lower) or 0 (neither)."""

    title: str
    unit: str
    better: int
    digits: int
    meaning: str


MEASURES = {
    "forward_kl": Measure(
        "Forward KL",
        "nats/step",
        -1,
        2,
        "KL divergence from teacher to student over the full vocabulary, exact, on held-out "
        "teacher responses.",
    ),
    "set_kl": Measure(
        "KL in the set",
        "nats/step",
        -1,
        2,
        "The same divergence between teacher and student, both normalised on the teacher's "
        "top-p set.",
    ),
    "kl_with_rest": Measure(
        "Set-and-rest KL",
        "nats/step",
        -1,
        2,
        "KL divergence from teacher to student on the members of the teacher's top-p set and one "
        "outcome for all other tokens, exact, on held-out teacher responses: at most the forward "
        "KL, and known from a list of likeliest tokens.",
    ),
    "leak": Measure(
        "Leak", "share", -1, 3, "Share of the student's probability off the teacher's top-p set."
    ),
    "rouge_l": Measure(
        "Rouge-L",
        "0\N{EN DASH}100",
        1,
        1,
        "Longest common subsequence with the best-matching reference (F measure, stemmed).",
    ),
    "exact_match": Measure(
        "Exact match", "share", 1, 3, "Share of responses equal to one of the references."
    ),
    "verified": Measure(
        "Verified", "share", 1, 3, "Mean verdict of the recipe's verifier, 1 for a right response."
    ),
    "teacher_nll": Measure(
        "Teacher NLL",
        "nats/token",
        -1,
        2,
        "Negative log-likelihood of a model's own responses under the teacher. It falls with "
        "sharper decoding too, so compare within one decoding.",
    ),
    "reverse_kl": Measure(
        "Reverse KL",
        "nats/token",
        -1,
        2,
        "KL divergence from the policy that samples to the teacher, exact at each state of its own "
        "samples.",
    ),
    "sequence_reverse_kl": Measure(
        "Sequence reverse KL",
        "nats/response",
        -1,
        1,
        "The same, summed over the response.",
    ),
    "own_forward_kl": Measure(
        "Forward KL on own prefixes",
        "nats/step",
        -1,
        2,
        "Forward KL, exact, at the states of the model's own responses.",
    ),
    "drawn_reverse_kl": Measure(
        "Reverse KL, drawn",
        "nats/token",
        -1,
        2,
        "Log-probability of a model's own samples under the policy that drew them, less that under "
        "the teacher: the reverse KL without bias, but with the noise of the tokens drawn.",
    ),
    "drawn_sequence_reverse_kl": Measure(
        "Sequence reverse KL, drawn",
        "nats/response",
        -1,
        1,
        "The same, summed over the response.",
    ),
    "own_kl_with_rest": Measure(
        "Set-and-rest KL on own prefixes",
        "nats/step",
        -1,
        2,
        "Set-and-rest KL at the states of the model's own responses.",
    ),
    "exposure_bias": Measure(
        "Exposure bias",
        "share",
        -1,
        2,
        "Forward KL on own prefixes over that on the teacher's, less 1 (means over prompts).",
    ),
    "entropy": Measure(
        "Entropy",
        "nats/token",
        0,
        2,
        "Entropy of the policy that samples, at its temperature, on its own responses; greedily, "
        "that at T = 1.",
    ),
    "repetition": Measure(
        "Repetition", "share", -1, 3, "4-grams of tokens that the same response holds already."
    ),
    "response_tokens": Measure("Tokens", "a response", 0, 1, "Mean response length in tokens."),
    "ended": Measure(
        "Ended", "share", 0, 2, "Share of responses that ended before the length limit."
    ),
    "word_entropy": Measure(
        "Word entropy", "nats", 0, 2, "Entropy of the words of all responses together."
    ),
    "bigram_entropy": Measure(
        "Bigram entropy",
        "nats",
        0,
        2,
        "Entropy of the pairs of neighbouring words of all responses together. It grows with the "
        "amount of text, so compare models on the same prompts and seeds.",
    ),
    **{
        f"distinct_{n}": Measure(
            f"Distinct-{n}", "share", 0, 2, f"Different runs of {n} words, of all such runs."
        )
        for n in (1, 2, 3)
    },
    "different_words": Measure("Different words", "count", 0, 0, "In all responses together."),
    "self_bleu": Measure(
        "Self-BLEU", "0\N{EN DASH}1", 0, 2, "BLEU of each response against all the others."
    ),
    "distinct_responses": Measure(
        "Distinct responses", "share", 0, 2, "Different responses, of those to one prompt."
    ),
    "loss": Measure("Loss", "", -1, 3, "Each objective's own loss."),
    "implied_reward": Measure(
        "Implied reward",
        "nats",
        0,
        2,
        "Q(s, a) minus the discounted soft value of the next state: the reward that the student's "
        "logits imply for a token.",
    ),
    "value": Measure("Soft value V", "nats", 0, 2, "Log-sum-exp of Q over the set."),
}

_PASS = "pass_at_"

MODEL_NAMES = {
    "teacher": "Teacher",
    "start": "Start",
    "sft": "SFT",
    "seqkd": "SeqKD",
    "kd": "KD",
    "bellman_distill": "Bellman Distill",
}

DECODINGS = {
    "greedy": "Greedy",
    "sample": "Sampled, T = 1",
    "nucleus": "Nucleus 0.8",
    "tuned": "Tuned temperature",
}

PHRASES = {
    "greedy": "decoded greedily",
    "sample": "sampled at T = 1",
    "nucleus": "sampled from the 0.8 nucleus",
    "tuned": "sampled at its tuned temperature",
}


def measure(name: str) -> Measure:
    """The measure of a metric; an unknown metric keeps its own name and claims no direction."""
    for start, better in ((HIGHER, 1), (LOWER, -1)):
        if name.startswith(start):
            meaning = "A task of lm-evaluation-harness, and its metric."
            return Measure(name.removeprefix(start), "", better, 3, meaning)
    k = name.removeprefix(_PASS)
    if k != name:
        meaning = f"Chance that one of {k} samples is right, unbiased."
        return Measure(f"Pass@{k}", "share", 1, 3, meaning)
    return MEASURES.get(name) or Measure(name, "", 0, 3, "")


def model_name(label: str) -> str:
    """A model label as readers see it; labels that users chose stay as they are."""
    return MODEL_NAMES.get(label, label)


def decoding_name(decoding: str) -> str:
    """A decoding as a heading."""
    return DECODINGS.get(decoding, decoding)


def decoding_phrase(decoding: str) -> str:
    """A decoding inside a sentence."""
    return PHRASES.get(decoding, f"in decoding {decoding}")


def in_order(found: Iterable[str], order: Sequence[str]) -> list[str]:
    """Distinct entries, those of ``order`` first and in that order, then the others as found."""
    seen = dict.fromkeys(found)
    return [x for x in order if x in seen] + [x for x in seen if x not in order]


def in_sentence(title: str) -> str:
    """A title as a part of a sentence.

    Example:
        >>> in_sentence("Forward KL")
        'forward KL'
    """
    return title[:1].lower() + title[1:]


def verdict(difference: Estimate | None, what: Measure) -> str:
    """What a paired difference says of its first model.

    Returns:
        ``better`` or ``worse`` where the interval is without 0, ``other`` where the measure has no
        better side, ``even`` where the interval holds 0, and nothing where there is no interval.

    Example:
        >>> verdict(Estimate(-0.5, -0.7, -0.3), MEASURES["forward_kl"])
        'better'
    """
    if difference is None or difference.low is None or difference.high is None:
        return ""
    if difference.low <= 0 <= difference.high:
        return "even"
    if what.better == 0:
        return "other"
    return "better" if (difference.low > 0) == (what.better > 0) else "worse"


def number(value: float | None, digits: int) -> str:
    """A number with a fixed count of decimals and a true minus sign; a dash for None.

    Example:
        >>> number(-0.456, 2), number(None, 2), number(float("inf"), 2)
        ('−0.46', '–', '∞')
    """
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("" if value > 0 else MINUS) + "\N{INFINITY}"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def interval(estimate: Estimate, digits: int) -> str:
    """Low and high in brackets, or the remark that none was recorded."""
    if estimate.low is None or estimate.high is None:
        return "no interval recorded"
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def count(value: float | None) -> str:
    """A large count in three figures or so.

    Example:
        >>> count(134_515_008), count(1_700), count(12)
        ('134.5M', '1.7k', '12')
    """
    if value is None:
        return DASH
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:g}"


MOST_NAMED = 4


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; of many the first few.

    Example:
        >>> listed(["kd"]), listed(["sft", "kd"]), listed("abcdef")
        ('kd', 'sft and kd', 'a, b, c and 3 others')
    """
    if len(names) > MOST_NAMED:
        rest = len(names) - MOST_NAMED + 1
        names = [*names[: MOST_NAMED - 1], f"{rest} others"]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
