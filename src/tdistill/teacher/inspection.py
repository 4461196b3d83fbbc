"""What a teacher cache holds, in numbers, and what each choice of p would cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import torch

from tdistill.core import kappa, truncate
from tdistill.teacher.adaptive import ChosenSets, GapRule, choose_top_p
from tdistill.teacher.cache.all_steps import AllSteps, all_steps
from tdistill.teacher.cache.manifest import VERSION
from tdistill.teacher.cache.reader import Cache, decoding

_MENU = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def inspect_cache(
    cache: Cache, *, discount: float = 0.99, gap: float | None = None
) -> dict[str, Any]:
    """Counts, sizes, coverage and bounds of a cache, as plain values for JSON.

    ``kappa_least_mass`` is kappa at the least captured mass, which holds under a binding cap too.
    ``bound`` is (3.3) averaged over the states of the cached responses, where those that were cut
    go on, and ``bound_as_cached`` the same as if they had ended; ``bound_stationary`` is the same
    sum if a response went on for ever at the mean loss of its steps, which is what kappa assumes of
    the worst step.

    Args:
        cache: the open cache.
        discount: gamma of the bounds.
        gap: nats of Q that may be lost: adds ``chosen``, the sets that this asks for.

    Returns:
        See the keys.

    Raises:
        CacheError: for a cache without rows.
        InvalidValueError: if all that was captured loses more than ``gap``.
    """
    identity, everything = cache.manifest.identity, all_steps(cache)
    sets = everything.sets
    sizes = sets.sizes.numpy()
    mass = (-everything.losses(sets)).exp().numpy()
    with decoding(cache.folder):
        marks = [len(places) for shard in cache.shards() for places in shard.incomplete()]
    cap = identity.max_set_size
    steps, members = len(sizes), len(sets.ids)
    menu = [p for p in _MENU if p < identity.captured_top_p] + [identity.captured_top_p]
    return {
        "format_version": VERSION,
        "teacher": identity.teacher,
        "captured_top_p": identity.captured_top_p,
        "max_set_size": cap,
        "vocabulary_size": identity.vocabulary_size,
        "rows": len(everything.lengths),
        "steps": steps,
        "members": members,
        "bytes": everything.bytes,
        "bytes_per_step": everything.bytes / max(steps, 1),
        "bytes_per_member": everything.bytes / max(members, 1),
        "tail_samples": identity.tail_samples,
        "tail_tokens_per_step": float(everything.tail_sizes.double().mean()),
        "set_size": _quantiles(sizes),
        "set_size_histogram": _histogram(sizes),
        "coverage": {
            "mean": float(mass.mean()),
            "q10": float(np.quantile(mass, 0.1)),
            "min": float(mass.min()),
        },
        "listed_tokens": identity.listed_tokens,
        "incomplete_steps": sum(marks),
        "incomplete_rows": sum(count > 0 for count in marks),
        "normaliser": identity.normaliser,
        "cap_binds": 0.0 if cap is None else float(_capped(sizes, mass, identity).mean()),
        "kappa_least_mass": kappa(min(1.0, float(mass.min())), discount),
        "out_of_set_rate": _out_of_set_rate(everything),
        "ended_rate": float(everything.ended.double().mean()),
        "discount": discount,
        "bounds": [_bound(everything, p, discount) for p in menu],
        **({} if gap is None else {"chosen": _chosen(everything, gap, discount)}),
    }


def inspection_text(numbers: dict[str, Any]) -> str:
    """The numbers of :func:`inspect_cache` for people."""
    size, coverage = numbers["set_size"], numbers["coverage"]
    lines = [
        f"teacher cache of {numbers['teacher']} (format {numbers['format_version']})",
        f"  captured       p = {numbers['captured_top_p']}, at most {numbers['max_set_size']} of "
        f"{numbers['vocabulary_size']} tokens",
        f"  rows           {numbers['rows']}, {numbers['ended_rate']:.1%} ended, "
        f"{numbers['steps']} steps, {numbers['members']} set members",
        f"  bytes          {numbers['bytes']}: {numbers['bytes_per_step']:.1f} a step, "
        f"{numbers['bytes_per_member']:.1f} a member",
        f"  set size       mean {size['mean']:.1f}, median {size['median']:.0f}, 90% "
        f"{size['q90']:.0f}, 99% {size['q99']:.0f}, largest {size['max']:.0f}",
        f"  captured mass  mean {coverage['mean']:.4f}, 10% {coverage['q10']:.4f}, least "
        f"{coverage['min']:.4f}",
        f"  cap binds      at {numbers['cap_binds']:.2%} of the steps",
        f"  sampled tail   {numbers['tail_samples']} draws a step, "
        f"{numbers['tail_tokens_per_step']:.1f} distinct tokens",
        f"  out of set     {numbers['out_of_set_rate']:.2%} of the response tokens",
        f"  what p loses at discount {numbers['discount']}, nats of Q: (3.3) on these responses, "
        "(3.3) where cut ones go on, (3.3) without end, kappa; bytes a step are estimates",
    ]
    if not numbers["normaliser"]:
        lines.insert(-1, "  log-normaliser absent: the teacher listed tokens only")
    if numbers["listed_tokens"] is not None:
        lines.insert(-1, _incomplete_text(numbers))
    lines += [
        f"    p = {b['set_top_p']:<5} mean size {b['mean_size']:8.1f}  bytes "
        f"{b['bytes_per_step']:7.1f}   {b['bound_as_cached']:7.2f}  {b['bound']:7.2f}  "
        f"{b['bound_stationary']:7.2f}  "
        f"{b['kappa']:7.2f}"
        for b in numbers["bounds"]
    ]
    lines += [f"    {ChosenSets(**chosen).text()}" for chosen in numbers.get("chosen", ())]
    if numbers["cap_binds"] > 0:
        lines.append(
            "  note           where the cap binds p does not bound the mass: kappa at the least "
            f"captured mass is {numbers['kappa_least_mass']:.2f}"
        )
    return "\n".join(lines)


def _incomplete_text(numbers: dict[str, Any]) -> str:
    share = numbers["incomplete_steps"] / max(numbers["steps"], 1)
    return (
        f"  incomplete     {numbers['incomplete_steps']} sets ({share:.2%} of the steps, in "
        f"{numbers['incomplete_rows']} rows): {numbers['listed_tokens']} tokens were listed and "
        "held less than p"
    )


def _chosen(everything: AllSteps, gap: float, discount: float) -> list[dict[str, Any]]:
    rules: tuple[GapRule, ...] = get_args(GapRule)
    choices = [choose_top_p(everything, gap, discount=discount, rule=rule) for rule in rules]
    return [asdict(choice) for choice in choices]


def _out_of_set_rate(everything: AllSteps) -> float:
    sets, action = everything.sets, everything.action
    hits = torch.zeros(len(action)).index_add(0, sets.step, (sets.ids == action[sets.step]).float())
    return float((hits == 0).float().mean())


def _capped(sizes: np.ndarray, mass: np.ndarray, identity: Any) -> np.ndarray:
    # Mass is summed from rounded log-probabilities: allow for their rounding.
    return (sizes == identity.max_set_size) & (mass < identity.captured_top_p - 1e-3)


def _quantiles(sizes: np.ndarray) -> dict[str, float]:
    q50, q90, q99 = np.quantile(sizes, [0.5, 0.9, 0.99])
    return {
        "mean": float(sizes.mean()),
        "median": float(q50),
        "q90": float(q90),
        "q99": float(q99),
        "max": float(sizes.max()),
    }


def _histogram(sizes: np.ndarray) -> dict[str, list[int]]:
    largest = int(sizes.max())
    edges = [1, 2]
    while edges[-1] <= largest:
        edges.append(2 * edges[-1] - 1)  # 1, 2, 3, 5, 9, 17, ...
    counts, _ = np.histogram(sizes, bins=edges)
    return {"edges": edges, "counts": counts.tolist()}


def _bound(everything: AllSteps, p: float, discount: float) -> dict[str, float]:
    smaller = truncate(everything.sets, p)
    loss = everything.losses(smaller)
    sizes = smaller.sizes.double()
    return {
        "set_top_p": p,
        "mean_size": float(sizes.mean()),
        "median_size": float(np.median(sizes.numpy())),
        "bytes_per_step": everything.bytes_per_step(smaller),
        "bound": everything.bound(smaller, discount=discount),
        "bound_as_cached": everything.bound(smaller, discount=discount, as_cached=True),
        "bound_stationary": float(discount / (1 - discount) * loss.mean()),
        "kappa": kappa(p, discount),
    }
