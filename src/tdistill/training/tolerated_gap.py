"""A tolerated gap in nats, turned into sets by the bound (3.3) measured on the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tdistill.teacher.adaptive import ChosenSets, choose_top_p
from tdistill.teacher.cache.reader import Cache
from tdistill.training.objectives import Objective


def resolve_gap(
    objective: Objective, cache: Callable[[], Cache]
) -> tuple[Objective, ChosenSets | None]:
    """The objective with its sets chosen, and the choice; unchanged where no gap was stated.

    Args:
        objective: may state a ``tolerated_gap``.
        cache: opens the evidence it will train on, if it is needed.

    Returns:
        An objective without a ``tolerated_gap``, and what was chosen, or None.

    Raises:
        InvalidValueError: if everything that was captured loses more than the gap.
    """
    gap = objective.tolerated_gap
    if gap is None:
        return objective, None
    chosen = choose_top_p(cache(), gap, discount=objective.discount, rule=objective.gap_rule)
    sets = {"set_top_p": chosen.set_top_p, "min_gain": chosen.min_gain}
    return replace(objective, tolerated_gap=None, **sets), chosen
