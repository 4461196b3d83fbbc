"""What a teacher cache holds, in numbers, and what each choice of p would cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import torch

from tdistill.core import kappa, truncate
from tdistill.errors import CacheError, InvalidValueError
from tdistill.evidence.rows import row_key
from tdistill.teacher.adaptive import ChosenSets, GapRule, choose_top_p
from tdistill.teacher.cache import Cache
from tdistill.teacher.contents import Contents, contents_of
from tdistill.teacher.manifest import CacheIdentity, Shard

_PER_STEP = ("response_ids", "log_normaliser", "action_log_prob")
_MENU = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def inspect_cache(
    cache: Cache, *, discount: float = 0.99, gap: float | None = None
) -> dict[str, Any]:
    """Counts, sizes, coverage and bounds of a cache, as plain values for JSON.

    ``kappa_least_mass`` is kappa at the least captured mass, which holds under a binding cap too.
    ``bound`` is (3.3) averaged over the states of the cached responses, which end;
    ``bound_stationary`` is the same sum if a response went on for ever at the mean loss of its
    steps, which is what kappa assumes of the worst step.

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
    identity, everything = cache.manifest.identity, contents_of(cache)
    sets = everything.sets
    sizes = sets.sizes.numpy()
    mass = (-everything.losses(sets)).exp().numpy()
    cap = identity.max_set_size
    steps, members = len(sizes), len(sets.ids)
    menu = [p for p in _MENU if p < identity.captured_top_p] + [identity.captured_top_p]
    return {
        "format_version": cache.manifest.version,
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
        "(3.3) without end, kappa; bytes a step if captured so are estimates",
    ]
    lines += [
        f"    p = {b['set_top_p']:<5} mean size {b['mean_size']:8.1f}  bytes "
        f"{b['bytes_per_step']:7.1f}   {b['bound']:7.2f}  {b['bound_stationary']:7.2f}  "
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


def verify_cache(cache: Cache) -> list[str]:
    """Problems inside shards that have the right checksum; an empty list means none.

    Opening the cache has already compared sizes and checksums.
    """
    problems = []
    for shard in cache.manifest.shards:
        try:
            checks = _checks(cache, shard)
        except (CacheError, InvalidValueError) as error:  # bytes that are no rows
            checks = {f"a row that cannot be read: {error}": True}
        problems += [f"{shard.name}: {text}" for text, found in checks.items() if found]
    return problems


def _checks(cache: Cache, shard: Shard) -> dict[str, bool]:
    identity = cache.manifest.identity
    (columns,) = cache.shard_columns(shard=shard.name)
    checks = _structure(shard, columns)
    if identity.tail_samples > 0:
        checks |= _tail_structure(shard, columns)
    if not any(checks.values()):  # else the columns cannot be laid side by side
        checks = _contents(columns, identity.vocabulary_size)
        if identity.tail_samples > 0:
            checks |= _tail_contents(columns, identity)
    keys = [row_key(row) for row in cache.rows(shard=shard.name)]
    wrong = keys != cache.keys(shard=shard.name)
    return checks | {"a row whose key is not that of its tokens": wrong}


def _structure(shard: Shard, columns: dict[str, Any]) -> dict[str, bool]:
    sizes, members = columns["set_sizes"], columns["set_ids"]
    per_step = {len(columns[name]) for name in _PER_STEP}
    return {
        "row count differs from the manifest": len(columns["lengths"]) != shard.rows,
        "step count differs from the manifest": len(sizes) != shard.steps,
        "member count differs from the manifest": len(members) != shard.members,
        "columns of different lengths": per_step != {len(sizes)}
        or {len(members), int(sizes.sum())} != {len(columns["set_log_probs"])},
        "an empty set": bool((sizes < 1).any()),
    }


def _contents(columns: dict[str, Any], vocabulary: int) -> dict[str, bool]:
    sizes, ids = columns["set_sizes"], columns["set_ids"].astype(np.int64)
    log_probs, action = columns["set_log_probs"], columns["response_ids"].astype(np.int64)
    step = np.repeat(np.arange(len(sizes)), sizes)
    within = step[1:] == step[:-1]
    taken = ids == action[step]
    differs = (log_probs != columns["action_log_prob"][step]) & taken
    outside = max(int(ids.max()), int(action.max())) >= vocabulary
    return {
        "a token id outside the vocabulary": outside,
        "a token twice in one set": len(np.unique(step * (1 << 32) + ids)) < len(ids),
        "a log-probability above 0 or not a number": not bool((log_probs <= 0).all()),
        "a set not in descending order": bool((log_probs[1:] > log_probs[:-1])[within].any()),
        "a response token with two log-probabilities": bool(differs.any()),
    }


def _tail_structure(shard: Shard, columns: dict[str, Any]) -> dict[str, bool]:
    if "tail_sizes" not in columns:
        return {"no tail columns, although the cache was captured with tail samples": True}
    sizes, tokens = columns["tail_sizes"], columns["tail_ids"]
    lengths = {int(sizes.sum()), len(columns["tail_log_probs"]), len(columns["tail_counts"])}
    return {
        "tail token count differs from the manifest": len(tokens) != shard.tail_tokens,
        "tail columns of different lengths": len(sizes) != shard.steps or lengths != {len(tokens)},
    }


def _tail_contents(columns: dict[str, Any], identity: CacheIdentity) -> dict[str, bool]:
    sizes, ids = columns["tail_sizes"], columns["tail_ids"].astype(np.int64)
    step = np.repeat(np.arange(len(sizes)), sizes)
    drawn = np.bincount(step, weights=columns["tail_counts"], minlength=len(sizes))
    set_sizes = columns["set_sizes"]
    members = np.repeat(np.arange(len(set_sizes)), set_sizes) * (1 << 32) + columns["set_ids"]
    least = columns["set_log_probs"][np.cumsum(set_sizes) - 1]
    log_probs = columns["tail_log_probs"]
    return {
        "a tail token outside the vocabulary": bool((ids >= identity.vocabulary_size).any()),
        "a tail token twice in one step": len(np.unique(step * (1 << 32) + ids)) < len(ids),
        "a tail token that is in the set": bool(np.isin(step * (1 << 32) + ids, members).any()),
        "a tail token likelier than the set": not bool((log_probs <= least[step]).all()),
        f"a step without {identity.tail_samples} tail draws": not bool(
            np.isin(drawn, (0, identity.tail_samples)).all()
        ),
    }


def _chosen(contents: Contents, gap: float, discount: float) -> list[dict[str, Any]]:
    rules: tuple[GapRule, ...] = get_args(GapRule)
    choices = [choose_top_p(contents, gap, discount=discount, rule=rule) for rule in rules]
    return [asdict(choice) for choice in choices]


def _out_of_set_rate(contents: Contents) -> float:
    sets, action = contents.sets, contents.action
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


def _bound(contents: Contents, p: float, discount: float) -> dict[str, float]:
    smaller = truncate(contents.sets, p)
    loss = contents.losses(smaller)
    sizes = smaller.sizes.double()
    return {
        "set_top_p": p,
        "mean_size": float(sizes.mean()),
        "median_size": float(np.median(sizes.numpy())),
        "bytes_per_step": contents.bytes_per_step(smaller),
        "bound": contents.bound(smaller, discount=discount),
        "bound_stationary": float(discount / (1 - discount) * loss.mean()),
        "kappa": kappa(p, discount),
    }
