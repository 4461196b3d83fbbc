"""How much of the sets a tolerated gap asks for: p or a gain, from the bound (3.3) of a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tdistill.core import TopPSets, truncate, truncate_by_gain
from tdistill.errors import InvalidValueError
from tdistill.teacher.cache.all_steps import AllSteps, all_steps
from tdistill.teacher.cache.reader import Cache

GapRule = Literal["global", "per-state"]

_P_UNITS = 10_000  # p is a multiple of 1/10,000
_LARGEST_GAIN = 0.7  # a second member adds at most log 2: this leaves one member a state
_GAIN_UNITS = 1_000  # gains are 0.7 * 10^(-k/1,000): steps of 0.23%
_GAIN_DECADES = 8


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
    source: Cache | AllSteps, gap: float, *, discount: float, rule: GapRule = "global"
) -> ChosenSets:
    """The smallest sets whose measured loss stays within a tolerated gap.

    The loss is the bound (3.3) averaged over the states of the cached responses, of which those
    that were cut go on. It falls as sets grow, so the answer is found by bisection. ``per-state``
    cuts every state at the same gain in log mass. Of all cuts with the same sum of ``-log m`` over
    the states that has the fewest members; the bound weighs later states more, so a global p may
    meet a gap with fewer, and does on about a quarter of small caches.

    Args:
        source: a cache, or all its steps. The bound is that of its responses: chosen on nucleus
            samples, it holds for the states that those visit.
        gap: nats of Q that may be lost.
        discount: gamma, in (0, 1].
        rule: one p for all states, or each state by itself.

    Returns:
        The rule and what it costs.

    Raises:
        InvalidValueError: if everything that was captured loses more than the gap, or a gap or
            discount that asks for nothing.
    """
    if not gap > 0.0 or not 0.0 < discount <= 1.0:
        raise InvalidValueError(
            f"tolerated_gap, discount: expected a gap above 0 nats and a discount in (0, 1], found "
            f"{gap} and {discount}; without later steps sets of any size lose nothing"
        )
    steps = source if isinstance(source, AllSteps) else all_steps(source)
    values, cut = _candidates(steps, rule)

    def within(k: int) -> bool:
        return steps.bound(cut(values[k]), discount=discount) <= gap

    if not within(len(values) - 1):
        _refuse(steps, cut(values[-1]), gap, discount)
    value = values[_first(within, len(values))]
    sets = cut(value)
    return ChosenSets(
        rule,
        set_top_p=value if rule == "global" else None,
        min_gain=value if rule == "per-state" else None,
        tolerated_gap=gap,
        discount=discount,
        bound=steps.bound(sets, discount=discount),
        bound_as_cached=steps.bound(sets, discount=discount, as_cached=True),
        mean_size=float(sets.sizes.double().mean()),
        bytes_per_step=steps.bytes_per_step(sets),
    )


def _candidates(steps: AllSteps, rule: GapRule) -> tuple[list[float], Callable[[float], TopPSets]]:
    """Values from the smallest sets to everything captured, and what cuts by one of them."""
    if rule == "global":
        most = steps.captured_top_p
        values = [k / _P_UNITS for k in range(1, _P_UNITS) if k / _P_UNITS < most]
        return [*values, most], lambda p: truncate(steps.sets, p)
    count = _GAIN_DECADES * _GAIN_UNITS
    gains = [float(f"{_LARGEST_GAIN * 10 ** (-k / _GAIN_UNITS):.4g}") for k in range(count)]
    return [*gains, 0.0], lambda gain: truncate_by_gain(steps.sets, gain)


def _first(holds: Callable[[int], bool], count: int) -> int:
    """The first index below ``count`` from which on ``holds`` is true; it is at the last."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _refuse(steps: AllSteps, sets: TopPSets, gap: float, discount: float) -> None:
    raise InvalidValueError(
        f"tolerated_gap: expected at least {steps.bound(sets, discount=discount):.3g} nats, "
        f"which all that was captured (mean size {float(sets.sizes.double().mean()):.1f}) loses at "
        f"discount {discount:g} on these responses, found {gap:g}; tolerate more, lower the "
        "discount, or capture again with a larger captured_top_p and max_set_size"
    )
