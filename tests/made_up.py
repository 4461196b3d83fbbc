"""A made-up result of many objectives, in the structure of ``metrics.json``."""

from __future__ import annotations

import math
import random
from typing import Any

FAMILIES = {"cloning": 11, "temporal-difference": 13, "online": 4, "comparison": 2}
DECODINGS = ("greedy", "sample", "nucleus")
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
IMITATED = (("forward_kl", 0.9, 0.25), ("leak", 0.12, 0.03), ("set_kl", 0.6, 0.2))
MEASURED = (
    ("rouge_l", 22.0, 2.0),
    ("teacher_nll", 2.1, 0.2),
    ("response_tokens", 60.0, 8.0),
    ("ended", 0.8, 0.05),
)
CACHE = {
    "rows": 18,
    "set_size": {"mean": 4.5, "median": 2.0},
    "set_size_histogram": {"edges": [1, 2, 3], "counts": [5, 3]},
    "bounds": [],
}
_WORDS = (
    "fkl",
    "rkl",
    "jsd",
    "skew",
    "tv",
    "iq_chi2",
    "iq_kl",
    "sqil",
    "soft_td",
    "path_consistency",
)


def made_up(
    families: dict[str, int] | None = None, seeds: int = 3, steps: int = 200, *, swept: bool = False
) -> Any:
    """Objectives of families with scores, differences to the first, curves, and a sweep."""
    chance = random.Random(0)
    labels = {
        f"{_WORDS[i % len(_WORDS)]}_{family[:2]}{i}": family
        for family, count in (families or FAMILIES).items()
        for i in range(count)
    }
    first = next(iter(labels))
    effect = {label: chance.gauss(0, 1) for label in labels}
    effect[list(labels)[-1]] = 9.0  # one that diverged
    sizes = {"teacher": -3.0, "start": 2.0, **effect}
    scores = [_row(x, d, sizes[x], chance, seeds) for d in DECODINGS for x in sizes]
    scores += [s | {"decoding": "tuned"} for s in scores if _is(s, "start", "sample")]
    differences = [
        _row(x, d, sizes[x] - effect[first], chance, seeds, less=first)
        for d in (None, *DECODINGS)
        for x in sizes
        if x != first
    ]
    differences += [d | {"decoding": "tuned"} for d in differences if _is(d, "start", "sample")]
    return {
        "format": 3,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"tdistill": "0.0"},
        "recipe": {
            "training": {"steps": steps},
            "objectives": {x: {"discount": 0.9} for x in labels},
        },
        "distilled": first,
        "baseline": first,
        "seeds": {"training": list(range(seeds)), "rollouts": 0},
        "counts": {"objectives": len(labels), "training_seeds": seeds, "test_prompts": 60},
        "parameters": {"teacher": 260_000, **dict.fromkeys(["start", *labels], 52_000)},
        "seconds": {
            "groundwork": {"rollouts": 30.0},
            "train": dict.fromkeys(["start", *labels], 60.0),
            "evaluate": dict.fromkeys(["start", *labels], 20.0),
        },
        "objectives": {
            x: {"name": x, "family": family, "minimises": "KL(pi* || pi)"}
            for x, family in labels.items()
        },
        "failed": {},
        "temperatures": {"start": [0.5] * seeds},
        "scores": scores,
        "imitation": [_row(x, None, sizes[x], chance, seeds) for x in sizes],
        "differences": differences,
        "sweep": {x: _sweep(sizes[x], chance, seeds) for x in sizes if swept},
        "matched": _matched(effect, first, chance, seeds) if swept else [],
        "cache": CACHE,
        "curves": {x: _curve(effect.get(x, 2.0), chance, seeds, steps) for x in ("start", *labels)},
        "samples": [],
        "reward_traces": [],
        "value_traces": [],
    }


def _is(row: Any, model: str, decoding: str) -> bool:
    return (row["model"], row["decoding"]) == (model, decoding)


def _row(
    label: str,
    decoding: str | None,
    size: float,
    chance: random.Random,
    seeds: int,
    *,
    less: Any = None,
) -> Any:
    """A score, an imitation (no decoding) or a difference, whose mean is only the effect."""
    metrics = {
        metric: _estimate((0.0 if less else mean) + size * spread, spread, chance, seeds)
        for metric, mean, spread in (MEASURED if decoding else IMITATED)
    }
    row = {"model": label, "metrics": metrics}
    if less:
        return row | {"less": less, "decoding": decoding}
    if decoding is None:
        return row
    about = {"temperature": 1.0, "sampling_top_p": 1.0, "seeds": 2, "prompts": 60}
    return row | {"decoding": decoding} | about


def _estimate(mean: float, spread: float, chance: random.Random, seeds: int) -> Any:
    half = spread * chance.uniform(0.2, 0.6)
    means = [mean + chance.gauss(0, half / 2) for _ in range(seeds)]
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": means}


def _sweep(size: float, chance: random.Random, seeds: int) -> list[Any]:
    """Sharper at a larger effect; quality falls with the entropy and rises with the effect."""
    points = []
    for temperature in TEMPERATURES:
        entropy = 2.2 * temperature * math.exp(-0.1 * size)
        means = {"entropy": entropy, "rouge_l": 33 - 4 * entropy + 1.2 * size}
        means |= {"teacher_nll": 0.8 + entropy * 1.3 - 0.05 * size}
        spreads = {"entropy": 0.05, "rouge_l": 2.0, "teacher_nll": 0.2}
        metrics = {x: _estimate(means[x], spreads[x], chance, seeds) for x in means}
        bigrams = 4.5 + entropy + chance.gauss(0, 0.03)
        together = {"bigram_entropy": bigrams, "distinct_1": 0.3, "self_bleu": 0.7}
        unknown = {"low": None, "high": None, "seeds": [0.5] * seeds}
        metrics |= {name: {"mean": value} | unknown for name, value in together.items()}
        points.append({"temperature": temperature, "metrics": metrics})
    return points


def _matched(effect: dict[str, float], first: str, chance: random.Random, seeds: int) -> list[Any]:
    """Differences at three values; the last is beyond what the sharpest objectives reach."""
    others = [label for label in effect if label != first]
    rows = []
    for variable, levels in (("entropy", (0.6, 1.1, 1.6)), ("bigram_entropy", (5.1, 5.6, 6.1))):
        for label in others:
            for level in levels:
                apart = effect[label] - effect[first]
                metrics = {
                    "rouge_l": _estimate(1.2 * apart, 2.0, chance, seeds),
                    "teacher_nll": _estimate(-0.05 * apart, 0.2, chance, seeds),
                }
                if level == levels[-1] and effect[label] > 1:
                    metrics = dict.fromkeys(metrics)
                row = {"model": label, "variable": variable, "level": level, "metrics": metrics}
                rows.append(row | {"comparisons": len(levels) * len(others)})
    return rows


def _curve(effect: float, chance: random.Random, seeds: int, steps: int) -> Any:
    def columns() -> dict[str, list[float]]:
        falling = [1.2 * math.exp(-i / (60 + 5 * effect)) + 0.6 for i in range(steps)]
        return {
            "step": list(range(1, steps + 1)),
            "loss": [x + chance.gauss(0, 0.15) for x in falling],
            "set_kl": [x + chance.gauss(0, 0.1) for x in falling],
            "leak": [0.1 * x + chance.gauss(0, 0.01) for x in falling],
            "implied_reward": [-x + chance.gauss(0, 0.2) for x in falling],
            "value": [20 + 3 * effect + x for x in falling],
            "tokens_per_second": [1000.0] * steps,
        }

    return {"mean": columns(), "seeds": [columns() for _ in range(seeds)]}
