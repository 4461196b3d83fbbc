"""The figures, each from the results alone; a figure whose benchmark was left out is None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, PEER, GREY = "#1f6f54", "#b4552d", "#8a8a8a"
NAMES = {
    "bellman_distill": "tdistill, bellman_distill\non the set",
    "kd": "tdistill, kd\nexact normaliser",
    "bellman_distill, vocabulary": "tdistill, bellman_distill\nexact normaliser",
    "gkd": "TRL GKDTrainer (lmbda 0)",
    "on_policy": "TRL DistillationTrainer\n(generation included)",
    "distillkit": "DistillKit's loss, its cache",
}

plt.rcParams.update(
    {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "speed"}
)


def draw(found: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure by name; ``headline`` is the README's."""
    details = found["details"]
    wanted = {
        "headline": (_headline, "training_step"),
        "vocabulary": (_vocabulary, "scaling"),
        "sharing": (_sharing, "scaling"),
        "loss_alone": (_loss_alone, "loss_alone"),
        "rollouts": (_rollouts, "rollouts"),
        "cache": (_cache, "cache_bytes"),
        "parts": (_parts, "limit"),
    }
    return {n: f(details[key]) if key in details else None for n, (f, key) in wanted.items()}


def close(figures: Iterable[Any]) -> None:
    """Free figures."""
    for figure in figures:
        plt.close(figure)


def _headline(details: Mapping[str, Any]) -> Any:
    rows = {row["method"]: row for row in details["methods"]}
    names = [name for name in NAMES if name in rows]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(9, 2.9), sharey=True, layout="tight")
    rates = [rows[n]["tokens_per_second"] for n in names]
    _bars(speed, names, [r["value"] for r in rates], [r["spread"] for r in rates])
    speed.set_xlabel("response tokens trained a second")
    _bars(memory, names, [rows[n]["over_bare_mib"] / 1024 for n in names])
    memory.set_xlabel("peak memory over the bare models, GiB")
    return figure


def _bars(
    axes: Any, names: list[str], values: list[float], spreads: Any = None, *, ours: bool = False
) -> None:
    places = range(len(names), 0, -1)
    own = {name for name, words in NAMES.items() if words.startswith("tdistill")}
    colours = [OURS if ours or n in own or n.startswith("tdistill") else PEER for n in names]
    error = None
    if spreads is not None:
        pairs = list(zip(values, spreads, strict=True))
        error = [[v - s[0] for v, s in pairs], [s[1] - v for v, s in pairs]]
    axes.margins(x=0.12)
    axes.barh(places, values, color=colours, xerr=error, ecolor=GREY, height=0.65)
    axes.set_yticks(list(places), [NAMES.get(n, n) for n in names])
    for place, value in zip(places, values, strict=True):
        axes.annotate(f" {value:,.3g}", (value, place), va="bottom", fontsize=8)


def _vocabulary(details: Mapping[str, Any]) -> Any:
    figure, (time, tokens) = plt.subplots(1, 2, figsize=(9, 3), layout="tight")
    for axes, key, label in ((time, "vocabulary", "vocabulary"), (tokens, "tokens", "row tokens")):
        rows = details[key]
        x = [row[key] for row in rows]
        axes.plot(x, [r["seconds"]["value"] for r in rows], "o-", color=OURS, label="whole step")
        without = [r["without_optimiser"]["value"] for r in rows]
        axes.plot(x, without, "o--", color=GREY, label="without optimiser and clipping")
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{v:,}" for v in x])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
    time.set_ylabel("seconds a step")
    time.legend(frameon=False, fontsize=8)
    return figure


def _sharing(details: Mapping[str, Any]) -> Any:
    rows = details["responses"]
    figure, axes = plt.subplots(figsize=(5, 3), layout="tight")
    for key, colour, label in (
        ("separate_rows", PEER, "separate rows"),
        ("shared_prefix", OURS, "shared prefix"),
    ):
        have = [row for row in rows if row.get(key)]
        if have:
            values = [row[key]["value"] for row in have]
            axes.plot([row["n"] for row in have], values, "o-", color=colour, label=label)
    axes.set_xlabel("responses a prompt")
    axes.set_ylabel("seconds a step, without optimiser")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _loss_alone(details: Mapping[str, Any]) -> Any:
    seconds = details["seconds"]
    names = sorted(seconds, key=lambda name: seconds[name]["value"])
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="tight")
    values = [seconds[name]["value"] for name in names]
    labels = [name.replace("set", "tdistill, on the set", 1) for name in names]
    _bars(axes, labels, values)
    axes.set_xscale("log")
    axes.set_xlabel("seconds, forward and backward of the loss (log scale)")
    return figure


def _rollouts(details: Mapping[str, Any]) -> Any:
    rates = details["tokens_per_second"]
    names = sorted(rates, key=lambda name: -rates[name]["value"])
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="tight")
    _bars(axes, names, [rates[n]["value"] for n in names], [rates[n]["spread"] for n in names])
    axes.set_xlabel("response tokens sampled a second")
    return figure


def _cache(details: Mapping[str, Any]) -> Any:
    figure, axes = plt.subplots(figsize=(7, 4), layout="tight")
    caps = sorted({row["max_set_size"] or 0 for row in details["curve"]}, key=lambda k: k or 1e9)
    for cap in caps:
        rows = [row for row in details["curve"] if (row["max_set_size"] or 0) == cap]
        label = f"tdistill, K = {cap}" if cap else "tdistill, no cap"
        x, y = [r["bytes_per_step"] for r in rows], [r["mass"] for r in rows]
        axes.plot(x, y, "o-", markersize=4, label=label)
    for row in details["peers"]:
        axes.plot(row["bytes_per_step"], row["mass"], "s", color=PEER)
        place = (row["bytes_per_step"], row["mass"])
        axes.annotate(
            row["name"], place, (0, 6), textcoords="offset points", fontsize=8, ha="center"
        )
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("bytes a step (log scale)")
    axes.set_ylabel("captured mass, mean over steps")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _parts(details: Mapping[str, Any]) -> Any:
    rows = details["profile"]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="tight")
    _bars(axes, [row["part"] for row in rows], [row["share"] * 100 for row in rows], ours=True)
    axes.set_xlabel("% of a training step")
    return figure
