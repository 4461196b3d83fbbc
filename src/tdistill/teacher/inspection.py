"""What a teacher cache holds, in numbers, and what each choice of p would cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from tdistill.core import kappa
from tdistill.teacher.adaptive import ChosenSets, check_gap, chosen_sets
from tdistill.teacher.cache.blocks import blocks
from tdistill.teacher.cache.manifest import VERSION
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.gap_sums import GapRule, GapSums, members_of
from tdistill.teacher.step_counts import StepCounts, histogram, quantile

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
    identity, whole = cache.manifest.identity, cache.manifest.bytes
    if gap is not None:
        check_gap(gap, discount)
    rules: tuple[GapRule, ...] = get_args(GapRule) if gap is not None else ("global",)
    most = identity.captured_top_p
    menu = [p for p in _MENU if p < most] + [most]
    counts = StepCounts(identity, menu)
    sums = [GapSums(rule, most, discount=discount) for rule in rules]
    for block in blocks(cache):
        members = members_of(block)
        for counted in (counts, *sums):
            counted.add(block, members)
    steps = counts.steps
    return {
        "format_version": VERSION,
        "teacher": identity.teacher,
        "teachers": [
            {"name": name, "fingerprint": key, "rows": counts.rows_of[key]}
            | {"steps": counts.steps_of[key]}
            for key, name in cache.manifest.teachers.items()
        ],
        "captured_top_p": most,
        "max_set_size": identity.max_set_size,
        "vocabulary_size": identity.vocabulary_size,
        "rows": counts.rows,
        "steps": steps,
        "members": counts.members,
        "bytes": whole,
        "bytes_per_step": whole / max(steps, 1),
        "bytes_per_member": whole / max(counts.members, 1),
        "tail_samples": identity.tail_samples,
        "tail_tokens_per_step": counts.tail_tokens / steps,
        "set_size": _quantiles(counts.sizes),
        "set_size_histogram": histogram(counts.sizes),
        "coverage": {
            "mean": counts.mass / steps,
            "q10": counts.mass_quantile(0.1),
            "min": counts.least_mass,
        },
        "listed_tokens": identity.listed_tokens,
        "incomplete_steps": counts.marked_steps,
        "incomplete_rows": counts.marked_rows,
        "normaliser": identity.normaliser,
        "cap_binds": counts.capped / steps,
        "kappa_least_mass": kappa(counts.least_mass, discount),
        "out_of_set_rate": counts.outside / steps,
        "ended_rate": counts.ended / counts.rows,
        "discount": discount,
        "bounds": [_bound(counts, sums[0], p, whole) for p in menu],
        **({} if gap is None else {"chosen": [asdict(chosen_sets(s, gap, whole)) for s in sums]}),
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
    if len(numbers["teachers"]) > 1:
        lines[1:1] = [
            f"  teacher        {t['name']} ({t['fingerprint']}): {t['rows']} rows, "
            f"{t['steps']} steps"
            for t in numbers["teachers"]
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


def _quantiles(sizes: np.ndarray) -> dict[str, float]:
    return {
        "mean": float((sizes * np.arange(len(sizes))).sum() / sizes.sum()),
        "median": quantile(sizes, 0.5),
        "q90": quantile(sizes, 0.9),
        "q99": quantile(sizes, 0.99),
        "max": float(np.flatnonzero(sizes)[-1]),
    }


def _bound(counts: StepCounts, sums: GapSums, p: float, whole: int) -> dict[str, float]:
    k, discount = sums.values.index(p), sums.visited.discount
    return {
        "set_top_p": p,
        "mean_size": sums.mean_size(k),
        "median_size": quantile(counts.cut_sizes[p], 0.5),
        "bytes_per_step": sums.bytes_per_step(k, whole),
        "bound": sums.bound(k),
        "bound_as_cached": sums.bound(k, as_cached=True),
        "bound_stationary": discount / (1 - discount) * sums.mean_loss(k),
        "kappa": kappa(p, discount),
    }
