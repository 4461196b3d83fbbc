"""How much of the sets a tolerated gap asks for: p or a gain, from the bound (3.3) of a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tdistill.errors import InvalidValueError
from tdistill.teacher.cache.blocks import blocks
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.gap_sums import GapRule, GapSums, members_of


@dataclass(frozen=True)
class ChosenSets:
    """A rule for cutting sets, and what it costs on the cache it was chosen on.

    Attributes:
        rule: one p for all states, or one gain, at which each state stops by itself.
        set_top_p: the p, or None.
        min_gain: the gain in log mass, nats, or None; see :func:`tdistill.core.truncate_by_gain`.
        tolerated_gap: what was asked for, nats of Q.
        discount: gamma of the bound.
        bound: (3.3), averaged over the states of the cached responses, nats; those that were cut go
            on at the mean loss.
        bound_as_cached: the same as if they had ended there.
        mean_size: members a step.
        bytes_per_step: an estimate, if only these members had been captured.
    """

    rule: GapRule
    set_top_p: float | None
    min_gain: float | None
    tolerated_gap: float
    discount: float
    bound: float
    bound_as_cached: float
    mean_size: float
    bytes_per_step: float

    def text(self) -> str:
        """One line for people."""
        chosen = (
            f"p = {self.set_top_p:g}" if self.min_gain is None else f"min_gain = {self.min_gain:g}"
        )
        return (
            f"a gap of {self.tolerated_gap:g} nats at discount {self.discount:g}: {self.rule} "
            f"{chosen}, mean size {self.mean_size:.1f}, about {self.bytes_per_step:.0f} bytes a "
            f"step, bound {self.bound:.3g} ({self.bound_as_cached:.3g} if cut responses had ended)"
        )


def choose_top_p(
    cache: Cache, gap: float, *, discount: float, rule: GapRule = "global"
) -> ChosenSets:
    """The smallest sets whose measured loss stays within a tolerated gap.

    The loss is the bound (3.3) averaged over the states of the cached responses, of which those
    that were cut go on. It falls as sets grow, so the answer is found by bisection, of sums that
    one pass over the cache makes for all values. ``per-state`` cuts every state at the same gain in
    log mass. Of all cuts with the same sum of ``-log m`` over the states that has the fewest
    members; the bound weighs later states more, so a global p may meet a gap with fewer, and does
    on about a quarter of small caches.

    Args:
        cache: the evidence. The bound is that of its responses: chosen on nucleus samples, it holds
            for the states that those visit.
        gap: nats of Q that may be lost.
        discount: gamma, in (0, 1].
        rule: one p for all states, or each state by itself.

    Returns:
        The rule and what it costs.

    Raises:
        InvalidValueError: if everything that was captured loses more than the gap, or a gap or
            discount that asks for nothing.
    """
    check_gap(gap, discount)
    sums = GapSums(rule, cache.manifest.identity.captured_top_p, discount=discount)
    for block in blocks(cache):
        sums.add(block, members_of(block))
    return chosen_sets(sums, gap, cache.manifest.bytes)


def check_gap(gap: float, discount: float) -> None:
    """Refuse a gap or a discount that asks for nothing."""
    if not gap > 0.0 or not 0.0 < discount <= 1.0:
        raise InvalidValueError(
            f"tolerated_gap, discount: expected a gap above 0 nats and a discount in (0, 1], found "
            f"{gap} and {discount}; without later steps sets of any size lose nothing"
        )


def chosen_sets(sums: GapSums, gap: float, whole: int) -> ChosenSets:
    """The smallest sets of a rule that stay within a gap.

    Args:
        sums: of the rule, over a whole cache.
        gap: nats of Q that may be lost.
        whole: bytes of all its shards.

    Raises:
        InvalidValueError: if everything that was captured loses more.
    """
    last = len(sums.values) - 1
    if sums.bound(last) > gap:
        _refuse(sums, gap)
    k = _first(lambda k: sums.bound(k) <= gap, last + 1)
    value = sums.values[k]
    return ChosenSets(
        sums.rule,
        set_top_p=value if sums.rule == "global" else None,
        min_gain=value if sums.rule == "per-state" else None,
        tolerated_gap=gap,
        discount=sums.visited.discount,
        bound=sums.bound(k),
        bound_as_cached=sums.bound(k, as_cached=True),
        mean_size=sums.mean_size(k),
        bytes_per_step=sums.bytes_per_step(k, whole),
    )


def _first(holds: Callable[[int], bool], count: int) -> int:
    """The first index below ``count`` from which on ``holds`` is true; it is at the last."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _refuse(sums: GapSums, gap: float) -> None:
    last = len(sums.values) - 1
    raise InvalidValueError(
        f"tolerated_gap: expected at least {sums.bound(last):.3g} nats, "
        f"which all that was captured (mean size {sums.mean_size(last):.1f}) loses at "
        f"discount {sums.visited.discount:g} on these responses, found {gap:g}; tolerate more, "
        "lower the discount, or capture again with a larger captured_top_p and max_set_size"
    )
