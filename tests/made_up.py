"""A made-up result of many objectives, in the structure of ``metrics.json``."""

from __future__ import annotations

import math
import random
from typing import Any

FAMILIES = {"cloning": 11, "temporal-difference": 13, "online": 4, "comparison": 2}
DECODINGS = ("greedy", "sample", "nucleus")
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


def made_up(families: dict[str, int] | None = None, seeds: int = 3, steps: int = 200) -> Any:
    """Objectives of families with scores, differences to the first, and curves."""
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
        "cache": CACHE,
        "curves": {x: _curve(effect.get(x, 2.0), chance, seeds, steps) for x in ("start", *labels)},
        "samples": [],
        "reward_traces": [],
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
